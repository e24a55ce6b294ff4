"""Hash of the installed code, so that a node can refuse a run of other code than its own operator installed.

It identifies the code, and proves nothing about a dishonest node: that takes hardware. It is not needed against a
dishonest server, which sends no code: nodes run only what is installed.
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
    "inference",
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
    """Return the hex SHA-256 over names and contents of all Python files of fedglm, as they were at the first call."""
    digest = hashlib.sha256()
    public = {"__init__.py": Path(str(fedglm.__file__)).read_bytes()}
    for files in (public, *map(_read_files, PACKAGES)):
        for name, content in sorted(files.items()):
            digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _read_files(package: str) -> dict[str, bytes]:
    # The folder lies beside this file's own, in a checkout as in an installation. Python's import system cannot be
    # asked: an editable install gives no location of a folder that holds only folders.
    folder = Path(__file__).resolve().parents[1] / package
    files = {f"{package}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.py")}
    if not files:
        raise FedglmError(f"{folder} holds no code: install fedglm again")
    return files
