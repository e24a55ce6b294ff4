"""A real SuperLink, once for all attacks on it: each leaves it as it was, or it has succeeded."""

import pytest
from live_server import LiveServer


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    with LiveServer(tmp_path_factory.mktemp("live"), descriptors=400) as server:
        yield server
