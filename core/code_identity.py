"""What code is installed here: one hash, so that a node can refuse a run of other code than its own operator installed.

It names the code, and proves nothing about a node that lies: that takes hardware. A server sends no code, so that there
is no need of it against one: nodes run only what is installed.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import fedglm
from fedglm.core.errors import FedglmError

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
    public = {"__init__.py": Path(str(fedglm.__file__)).read_bytes()}
    for files in (public, *map(_files, PACKAGES)):
        for name, content in sorted(files.items()):
            whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()


def _files(package: str) -> dict[str, bytes]:
    # Beside this file's own folder, in a checkout as in an installation. Python's import system would not do: of a
    # folder that holds folders alone an editable install gives no place.
    folder = Path(__file__).resolve().parents[1] / package
    files = {f"{package}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.py")}
    if not files:
        raise FedglmError(f"{folder} holds no code: install fedglm again")
    return files
