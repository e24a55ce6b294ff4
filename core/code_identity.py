"""What code is installed here: one hash, so that a node can refuse a run of other code than its own operator installed.

It names the code, and proves nothing about a node that lies: that takes hardware. A server sends no code, so that there
is no need of it against one: nodes run only what is installed.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "audit",
    "autoglm",
    "cli",
    "client",
    "compression",
    "core",
    "privacy",
    "protocol",
    "reports",
    "run_folder",
    "scenarios",
    "server",
    "simulations",
)


@cache
def code_sha256() -> str:
    """Hex SHA-256 over the names and contents of all Python files of fedglm, as they lay on the disk at first call."""
    whole = hashlib.sha256()
    for package in PACKAGES:
        for name, content in sorted(_files(package).items()):
            whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def _files(package: str) -> dict[str, bytes]:
    spec = find_spec(f"fedglm.{package}")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return {
        f"{package}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for folder in map(Path, folders)
        for path in folder.rglob("*.py")
    }
