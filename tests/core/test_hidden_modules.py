"""Modules that appear not installed for a while."""

import sys

import pytest

from fedglm.core.hidden_modules import hide_modules


def test_a_hidden_module_is_not_installed_and_afterwards_as_before():
    assert "wave" not in sys.modules
    with hide_modules("wave", "json"):
        with pytest.raises(ImportError):
            import wave
        import json  # noqa: F401 - loaded before, so that nobody's import of it fails
    import wave  # noqa: F401

    del sys.modules["wave"]
