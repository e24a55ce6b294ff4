"""A port between nodes and their server that carries their bytes, or misbehaves in one of many ways until healed."""

import contextlib
import selectors
import socket
import ssl
import struct
import threading

from projects import make_project

from fedglm.server.project.certificates import issue_certificate

HTML = b"<html><body>It works!</body></html>"


def _answer(status, body=HTML, kind="text/html", length=None):
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode() + body


IN_THE_CLEAR = {
    "plain HTTP": _answer("400 Bad Request"),
    "noise": bytes(range(7, 250)),
}
"""What is said to whoever connects, without TLS."""

BEHIND_TLS = {
    "another service": _answer("404 Not Found"),
    "a page": _answer("200 OK"),
    "a page that claims to be protobuf": _answer("200 OK", kind="application/protobuf"),
    "nothing": _answer("200 OK", b"", kind="text/plain"),
    "not available": _answer("503 Service Unavailable"),
    "forbidden by a proxy": _answer("403 Forbidden"),
    "a login": _answer("302 Found\r\nLocation: https://login.invalid/"),
    "unauthorized": _answer("401 Unauthorized"),
    "a fault": _answer("500 Internal Server Error"),
    "cut short": _answer("200 OK", kind="application/protobuf", length=4096),
    "no HTTP": b"220 mail.invalid ESMTP\r\n",
}
"""What a server with the right certificate answers."""

CERTIFICATES = ("an expired certificate", "a foreign certificate")
BARE = ("refused", "closed", "reset", "silent")
WAYS = (*BARE, *IN_THE_CLEAR, *CERTIFICATES, *BEHIND_TLS)


class MisbehavingLink:
    """Listens at a port of 127.0.0.1; a context manager.

    Args:
        project: The server's project; its certificate is shown where one is.
        folder: For certificates.
        server_port: Where the real server listens; None where there is none.
    """

    def __init__(self, project, folder, server_port=None):
        self._project, self._folder, self._server_port = project, folder, server_port
        self._way = None
        self._lock = threading.Lock()
        self._open = set()
        self._listener = None
        self.connections = 0
        self._listen(0)
        self.port = self._listener.getsockname()[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def misbehave(self, way):
        """Cut all connections, and misbehave in this way from now on."""
        self._end()
        self._way = way
        if way != "refused":
            self._listen(self.port)

    def heal(self):
        """Carry bytes again."""
        self.misbehave(None)

    def _listen(self, port):
        self._listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _end(self):
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self._listener = None
        with self._lock:
            open_now, self._open = self._open, set()
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, self._way), daemon=True).start()

    def _serve(self, connection, way):
        with contextlib.suppress(OSError, ValueError), connection:
            if way is None:
                self._carry(connection)
            elif way == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif way == "silent":
                while connection.recv(65536):
                    pass
            elif way in IN_THE_CLEAR:
                connection.recv(65536)
                connection.sendall(IN_THE_CLEAR[way])
            elif way != "closed":
                with self._context(way).wrap_socket(connection, server_side=True) as secured:
                    secured.recv(65536)
                    secured.sendall(BEHIND_TLS.get(way, b""))

    def _context(self, way):
        project = self._project
        certificate, key = project.certificate, project.server_key
        if way == "an expired certificate":
            certificate = self._folder / "expired.pem"
            if not certificate.exists():
                issue_certificate(project.authority_key, project.authority, key, certificate, ("127.0.0.1",), 0)
        elif way == "a foreign certificate":
            foreign = self._folder / "foreign"
            if not foreign.exists():
                make_project(foreign, sites=("elsewhere",))  # others share an authority
            certificate, key = (
                foreign / certificate.relative_to(project.folder),
                foreign / key.relative_to(project.folder),
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

    def _carry(self, near):
        with socket.create_connection(("127.0.0.1", self._server_port)) as far, selectors.DefaultSelector() as waiting:
            with self._lock:
                self._open.add(far)
            for one, other in ((near, far), (far, near)):
                waiting.register(one, selectors.EVENT_READ, other)
            while True:
                for key, _ in waiting.select():
                    content = key.fileobj.recv(65536)
                    if not content:
                        return
                    key.data.sendall(content)
