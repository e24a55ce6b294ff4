"""Projects of a server, and sites that hand over their keys to it, without a node behind them."""

import atexit
import functools
import shutil
import socket
import tempfile
from pathlib import Path
from typing import NamedTuple

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.server.project.folder import Project
from fedglm.server.project.kits import write_kit
from fedglm.server.project.settings import parse_settings


class Site(NamedTuple):
    """A site's two keys."""

    name: str
    flower: EllipticCurvePrivateKey
    signing: SigningKey

    @classmethod
    def make(cls, name, *, flower=None, signing=None):
        return cls(name, flower or generate_private_key(SECP384R1()), signing or SigningKey.generate())

    @property
    def identity(self):
        line = self.flower.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        return SiteIdentity(self.name, line, self.signing.public, "2027-01-04")

    @property
    def text(self):
        return self.identity.to_text(self.signing)

    def hand_over(self, folder):
        """Path of a fresh `SITE.pub`."""
        path = folder / f"{self.name}-{self.signing.public.hex[:8]}.pub"
        path.write_text(self.text)
        return path

    def flower_key(self, folder):
        """Path of the private key that a SuperNode signs on with."""
        path = folder / f"{self.name}-{self.signing.public.hex[:8]}.key"
        path.write_bytes(self.flower.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        path.chmod(0o600)
        return path


def free_ports(number):
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


def files_of(folder: Path):
    """Every file below the folder with its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_project(folder, *, sites=("a", "b")):
    """A project at free ports of 127.0.0.1, with a kit for each site."""
    template, values = _template(sites)
    shutil.copytree(template, folder)
    port, control_port = free_ports(2)
    settings = parse_settings(values | {"port": port, "control_port": control_port})
    (folder / "project.toml").write_text(tomli_w.dumps(settings.model_dump(mode="json")))
    project = Project.open(folder)
    project.write_flower_settings()
    return project


@functools.cache
def _template(sites):
    """Made once: the flushes to the disk take longer than most tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    values = {"name": "fl", "hosts": ["127.0.0.1"], "listen": "127.0.0.1"}
    project = Project.make(folder, parse_settings(values))
    for name in sites:
        write_kit(project, name)
    return folder, values
