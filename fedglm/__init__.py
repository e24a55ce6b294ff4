"""The public API: all that `docs/api.md` describes, and nothing else.

    import fedglm

    result = fedglm.simulate("hospital", epsilon=3, seed=7)
    print(result.summary["accuracy"], result.paths.report)

A name is imported when it is first used: `import fedglm` takes no time, and auditing needs neither torch nor Flower.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fedglm.audit.verify.verification import verify
    from fedglm.autoglm.light.quantization.quantizer import Quantizer
    from fedglm.autoglm.light.result import LightenResult
    from fedglm.autoglm.models.opening import open_model
    from fedglm.client.mods import compress_uplink
    from fedglm.compression.codec import make_codec
    from fedglm.compression.feedback import ErrorFeedback
    from fedglm.core.errors import FedglmError
    from fedglm.inference.batching.settings import BatchingSettings
    from fedglm.inference.cascade.cascade_model import CascadeModel
    from fedglm.inference.model import LiteModel
    from fedglm.inference.tiered_model import TieredModel
    from fedglm.privacy.dp.mechanism import Mechanism
    from fedglm.privacy.ledger.ledger import Ledger
    from fedglm.scenarios.overrides import load_scenario
    from fedglm.server.strategy import Compressed
    from fedglm.simulations.callbacks import SimulationCallbacks
    from fedglm.simulations.light.diagnosing import diagnose
    from fedglm.simulations.light.lighten import lighten
    from fedglm.simulations.result import RunResult
    from fedglm.simulations.simulation import simulate

    __version__: str

__all__ = [
    "BatchingSettings",
    "CascadeModel",
    "Compressed",
    "ErrorFeedback",
    "FedglmError",
    "Ledger",
    "LightenResult",
    "LiteModel",
    "Mechanism",
    "Quantizer",
    "RunResult",
    "SimulationCallbacks",
    "TieredModel",
    "__version__",
    "compress_uplink",
    "diagnose",
    "lighten",
    "load_scenario",
    "make_codec",
    "open_model",
    "simulate",
    "verify",
]

_PLACES: Final = {
    "BatchingSettings": ("fedglm.inference.batching.settings", ""),
    "CascadeModel": ("fedglm.inference.cascade.cascade_model", ""),
    "Compressed": ("fedglm.server.strategy", "node"),
    "ErrorFeedback": ("fedglm.compression.feedback", "node"),
    "FedglmError": ("fedglm.core.errors", ""),
    "Ledger": ("fedglm.privacy.ledger.ledger", ""),
    "LightenResult": ("fedglm.autoglm.light.result", ""),
    "LiteModel": ("fedglm.inference.model", ""),
    "Mechanism": ("fedglm.privacy.dp.mechanism", ""),
    "Quantizer": ("fedglm.autoglm.light.quantization.quantizer", "node"),
    "RunResult": ("fedglm.simulations.result", ""),
    "SimulationCallbacks": ("fedglm.simulations.callbacks", ""),
    "TieredModel": ("fedglm.inference.tiered_model", ""),
    "compress_uplink": ("fedglm.client.mods", "node"),
    "diagnose": ("fedglm.simulations.light.diagnosing", "light"),
    "lighten": ("fedglm.simulations.light.lighten", "light"),
    "load_scenario": ("fedglm.scenarios.overrides", "simulation"),
    "make_codec": ("fedglm.compression.codec", "node"),
    "open_model": ("fedglm.autoglm.models.opening", ""),
    "simulate": ("fedglm.simulations.simulation", "simulation"),
    "verify": ("fedglm.audit.verify.verification", ""),
}
"""The module of each name, and the extra that it needs beyond the base install."""

# Flower reports usage to its makers unless it is told not to; a hospital's machine must not. It reads this when it is
# imported, so that it must be said before.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_HERE = Path(__file__).resolve().parent
if not (_HERE / "core").is_dir():  # in a checkout the subpackages lie beside this folder; in a wheel, in it
    __path__.append(str(_HERE.parent))


if not TYPE_CHECKING:  # else a misspelt name would be any name to a type checker

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("fedglm")
        elif name in _PLACES:
            module, extra = _PLACES[name]
            try:
                value = getattr(import_module(module), name)
            except ModuleNotFoundError as exc:
                library = (exc.name or "fedglm").partition(".")[0]
                if not extra or library == "fedglm":
                    raise
                remedy = f"pip install 'fedglm[{extra}]'"
                raise ImportError(f"fedglm.{name} needs {library}, which is not installed: {remedy}") from exc
        else:
            raise AttributeError(f"module 'fedglm' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
