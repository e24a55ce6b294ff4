"""A server that a site trusts by its certificate, and that answers as it likes."""

import contextlib
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

HONEST = {
    "/v1/fleet/activate-node": ActivateNodeResponse(node_id=7),
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
    "/v1/fleet/pull-messages": PullMessagesResponse(),
}


class HostileServer:
    """Listens at a port of 127.0.0.1; a context manager.

    Args:
        project: Whose certificate it shows.
        answers: By path, what answers a request: it is given the handler. Others are answered as a server does.
    """

    def __init__(self, project, **answers):
        self.asked = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append(self.path)
                answer = answers.get(self.path.rpartition("/")[2].replace("-", "_"))
                with contextlib.suppress(OSError):
                    if answer is not None:
                        answer(self)
                    else:
                        honest = HONEST.get(self.path)
                        reply(self, b"" if honest is None else honest.SerializeToString())

            do_GET = do_HEAD = do_POST  # noqa: N815 - as `http.server` has it

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(project.certificate, project.server_key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def reply(handler, body, **fields):
    """An answer with a body."""
    handler.send_response(200)
    handler.send_header("content-type", "application/protobuf")
    handler.send_header("content-length", str(len(body)))
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def redirect(to, status=307):
    """An answer that sends the node elsewhere, with all that it has sent."""

    def answer(handler):
        handler.send_response(status)
        handler.send_header("location", to)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


def endless(handler):
    """An answer without an end, as it seems: half a GiB."""
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for _ in range(512):
        handler.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def announced(size):
    """An answer of so many bytes, by its head."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header("content-length", str(size))
        handler.end_headers()
        for _ in range(size // 2**20):
            handler.wfile.write(bytes(2**20))

    return answer


def compressed(packed):
    """An answer that is short, and grows when it is unpacked."""
    return lambda handler: reply(handler, packed, content_encoding="gzip")
