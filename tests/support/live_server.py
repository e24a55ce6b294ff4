"""A real SuperLink that attacks are made on, and the strangers and sites that make them."""

import base64
import contextlib
import datetime
import hashlib
import io
import os
import signal
import socket
import ssl
import zipfile
from pathlib import Path

import httpx
from command_line import Process, run_here, soon
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from projects import Site, make_project

from fedglm.cli.process.daemon import Daemon
from fedglm.server.superlink.control import Control

APP = """\
[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "{publisher}"
[tool.flwr.app.components]
serverapp = "{component}"
clientapp = "fedglm.client.supernode.client_app:app"
[tool.flwr.app.config]
run = ""
"""

KIND = {"content-type": "application/protobuf", "accept": "application/protobuf"}


class LiveServer:
    """A project with two enrolled sites, and its SuperLink; a context manager.

    Args:
        folder: For everything.
        descriptors: How many open files the SuperLink may have; None leaves the limit alone.
    """

    def __init__(self, folder, descriptors=None):
        self.folder = folder
        self.sites = {name: Site.make(name) for name in ("a", "b")}
        self.project = make_project(folder / "fl", sites=tuple(self.sites))
        self.daemon = Daemon(self.project.state, "superlink")
        self._limit = () if descriptors is None else ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh")
        for site in self.sites.values():
            assert run_here("server", "enrol", site.hand_over(folder), "-C", self.project.folder).code == 0

    def __enter__(self):
        done = Process("server", "start", "-C", self.project.folder, prefix=self._limit).finish()
        assert done.code == 0, done.err + done.out
        with Control(self.project) as control:
            self.node_ids = {node.key: node.node_id for node in control.list_nodes()}
        return self

    def __exit__(self, *_):
        self.daemon.stop()
        for pid in self.daemon.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def port(self):
        return self.project.settings.port

    @property
    def log(self):
        return self.daemon.log.read_text(errors="replace")

    def pids(self):
        return set(self.daemon.members())

    def main(self):
        """The SuperLink's own process."""
        named = [pid for pid in self.pids() if "fedglm.server.superlink.main" in command(pid)]
        return max(named, key=memory_of, default=0)

    def memory(self):
        """MiB that it holds."""
        return memory_of(self.main())

    def descriptors(self):
        """How many files it has open."""
        return len(os.listdir(f"/proc/{self.main()}/fd"))

    def context(self, **limits):
        made = ssl.create_default_context(cafile=self.project.authority)
        for name, value in limits.items():
            setattr(made, name, value)
        return made

    def headers(self, site, *, signed=True):
        """What a node of the site signs a request with; or what a stranger can make of its public key."""
        key = self.sites[site].flower
        now = datetime.datetime.now(datetime.UTC).isoformat()
        signature = key.sign(now.encode(), ECDSA(SHA256())) if signed else bytes(70)
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        told = {"flwr-public-key": pem, "flwr-signature": signature}
        return {name: base64.b64encode(value).decode() for name, value in told.items()} | {"flwr-timestamp": now}

    def ask(self, site, path="pull-messages", message=None, timeout=30.0):
        """Status and body of the answer to a node's request."""
        if message is None:
            message = PullMessagesRequest(node=Node(node_id=self.node_id(site)))
        with httpx.Client(verify=self.context(), trust_env=False, timeout=timeout) as client:
            url = f"https://127.0.0.1:{self.port}/v1/fleet/{path}"
            answer = client.post(url, content=message.SerializeToString(), headers=KIND | self.headers(site))
        return answer.status_code, answer.content

    def post(self, path, message):
        """Status of the answer to a process of the service's own user, at this machine's port."""
        with httpx.Client(verify=self.context(), trust_env=False, timeout=30) as client:
            url = f"https://127.0.0.1:{self.project.settings.control_port}{path}"
            return client.post(url, content=message.SerializeToString(), headers=KIND).status_code

    def starts_runs(self):
        """Whether a run that is handed over is begun."""
        if self.post("/v1/control/start-run", run_of()) != 200:
            return False
        with Control(self.project) as control:
            return soon(lambda: control.list_runs()[0].status != "pending", 20)

    def node_id(self, site):
        return self.node_ids[self.sites[site].identity.flower]

    def connect(self, port=None, **options):
        """TLS to the sites' port."""
        plain = socket.create_connection(("127.0.0.1", port or self.port), timeout=20)
        try:
            return self.context(**options).wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise

    def head(self, path, site, length, *, signed):
        lines = {"host": "127.0.0.1", "content-length": length, **KIND, **self.headers(site, signed=signed)}
        fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"POST /v1/fleet/{path} HTTP/1.1\r\n{fields}\r\n".encode()

    def serves(self, site="a", within=20.0):
        """Whether a node of the site is answered, soon."""

        def answered():
            with contextlib.suppress(httpx.HTTPError):
                return self.ask(site, timeout=within)[0] == 200
            return False

        return soon(answered, within)


def run_of(*, name="fedglm-run", publisher="fedglm", component="fedglm.server.deployment.server_app:app", code=None):
    """The request to start an app, as `flwr run` makes it."""
    files = {"pyproject.toml": APP.format(name=name, publisher=publisher, component=component)}
    if code is not None:
        files["stranger.py"] = code
    listed = [f"{path},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}" for path, text in files.items()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as bundle:
        for path, text in (files | {".info/CONTENT": "\n".join(listed)}).items():
            bundle.writestr(path, text)
    content = packed.getvalue()
    return StartRunRequest(fab=Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content))


def silent(port, number):
    """Connections that say nothing, as many as can be made."""
    made = []
    for _ in range(number):
        connection = socket.socket()
        connection.settimeout(2)
        try:
            connection.connect(("127.0.0.1", port))
        except OSError:
            connection.close()
            break
        made.append(connection)
    return made


def as_nobody(act):
    """Whether something works for another user of this machine; to be one takes root."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = 0 if act() else 1
        except OSError:
            code = 1
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), "nobody could not even try"
    return code == 0


def command(pid):
    """A process's command line; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def memory_of(pid):
    """MiB that a process holds."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)
