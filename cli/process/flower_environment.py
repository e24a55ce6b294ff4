"""Environment of every Flower process that a command starts."""

import os
import sys
from pathlib import Path


def flower_environment(home: Path) -> dict[str, str]:
    """Variables for every Flower process that we start.

    It reports nothing to Flower's makers, asks for no update, installs nothing, opens no port that it was not told to,
    finds the commands of this installation before others, and asks no proxy for its own machine. An update travels in
    pieces of 1 MiB: Flower takes a signed request for 305 s, and at 256 kbit/s two of its usual 5 MiB need longer.
    Memory that is free goes back to the system; each thread's own pool would keep it. Where this installation is
    read-only, compiled kernels lie in `home`, for a service may have no folder of its user's.

    Args:
        home: Flower's folder for its settings and caches, of this project or site alone.
    """
    package = Path(__file__).parents[2] / "compression" / "kernels"
    kernels = {} if os.access(package, os.W_OK) else {"NUMBA_CACHE_DIR": str(home.absolute() / "kernels")}
    return kernels | {
        "FLWR_HOME": str(home.absolute()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_INTERNAL_GRPC_CONTROL_API": "0",
        "FLWR_INTERNAL_GRPC_FLEET_API": "0",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(2**20),
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(2**17),
        "no_proxy": ",".join(
            filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy", os.environ.get("NO_PROXY"))])
        ),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
