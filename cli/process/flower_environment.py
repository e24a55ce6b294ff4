"""Environment variables of every Flower process that a command starts."""

import os
import sys
from pathlib import Path


def make_flower_environment(home: Path) -> dict[str, str]:
    """Make the environment variables of a Flower process.

    Flower then sends no telemetry, checks for no update, installs nothing, opens only the ports it is configured to,
    uses this installation's commands, and uses no proxy for its own machine. An update is sent in chunks of 1 MiB:
    Flower accepts a signed request for 305 s, and at 256 kbit/s two of its default 5 MiB take longer. Free memory is
    returned to the system; each thread's own malloc arena would keep it. Where this installation is read-only, compiled
    kernels are cached in `home`, since a service may have no home folder.

    Args:
        home: Flower's folder for its configuration and caches, for this project or site only.
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
