"""The files in locks/, read; and wheels of a name and version that anybody could make."""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import NamedTuple

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = Path(__file__).parents[2] / "locks"
ROLES = ("audit", "dev", "edge", "light", "node", "server")
TORCH = "torch-cpu"
EXAMPLES = "examples"
"""One file each, installed without what it asks for."""


class Entry(NamedTuple):
    """One line of a lock: a package, and the digests of the files that may be it."""

    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]
    text: str

    @property
    def is_for_here(self):
        return self.marker is None or self.marker.evaluate()


def logical_lines(text):
    """Lines as pip reads them: continued by a backslash, without comments."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def options_of(lock):
    """The lines of a lock that are options of pip."""
    return [line for line in logical_lines((LOCKS / f"{lock}.txt").read_text()) if line.startswith("-")]


def entries(lock):
    """The entries of a lock, by line."""
    found = []
    for line in logical_lines((LOCKS / f"{lock}.txt").read_text()):
        if line.startswith("-"):
            continue
        words, *hashes = line.split(" --hash=")
        requirement = Requirement(words)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert "*" not in pin.version, line
        found.append(
            Entry(
                canonicalize_name(requirement.name),
                pin.version,
                requirement.marker,
                frozenset(digest.strip() for digest in hashes),
                line,
            )
        )
    return found


def versions(lock):
    """What a lock installs here: name to version."""
    return {entry.name: entry.version for entry in entries(lock) if entry.is_for_here}


def make_wheel(folder, name, version, code="", **metadata):
    """A wheel that holds one module of this code; returns its path."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    headers = {"Metadata-Version": "2.4", "Name": name, "Version": version, **metadata}
    files = {
        f"{name.replace('-', '_')}.py": code,
        f"{stem}.dist-info/METADATA": "".join(f"{key}: {value}\n" for key, value in headers.items()),
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{stem}.dist-info/RECORD"
    lines = [f"{file},sha256={_digest(content)},{len(content)}" for file, content in files.items()]
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in {**files, record: "\n".join([*lines, f"{record},,", ""])}.items():
            wheel.writestr(file, content)
    return path


def _digest(content):
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
