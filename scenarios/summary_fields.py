"""Fields of a run's summary that simulated and deployed runs share."""

import platform
from importlib.metadata import version
from typing import Any

from fedglm.scenarios.scenario import Scenario


def describe_coding(scenario: Scenario) -> dict[str, Any]:
    """Return how updates and models are coded, each way."""
    return {
        "codec": scenario.update.codec,
        "density": scenario.update.effective_density,
        "coding": scenario.update.in_words,
        "downlink_codec": scenario.downlink.codec,
        "downlink_density": scenario.downlink.effective_density,
        "downlink_coding": scenario.downlink.in_words,
    }


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a run's bits depend on most."""
    libraries = ("fedglm", "flwr", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
