"""A server on this machine that speaks TLS with a certificate of choice, and tells a time of choice."""

import contextlib
import datetime
import email.utils
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tls_server(
    certificate: Path,
    key: Path,
    *,
    ahead_s: float | None = 0.0,
    address: str = "127.0.0.1",
    port: int = 0,
    answers: bool = True,
) -> Iterator[int]:
    """Answer each connection with an HTTP head; gives the port.

    Args:
        certificate: PEM.
        key: PEM.
        ahead_s: How far its clock is ahead of this machine's; None tells no time.
        address: Of this machine.
        port: Of the address; 0 takes a free one.
        answers: Else it says nothing once TLS stands, and hangs up.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listening = socket.create_server((address, port))

    def answer() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:  # closed
                return
            with plain, contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                if not answers:
                    continue
                connection.recv(4096)
                now = datetime.datetime.now(datetime.UTC)
                told = email.utils.format_datetime(now + datetime.timedelta(seconds=ahead_s or 0), usegmt=True)
                date = "" if ahead_s is None else f"Date: {told}\r\n"
                connection.sendall(f"HTTP/1.1 404 Not Found\r\n{date}Content-Length: 0\r\n\r\n".encode())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


@contextlib.contextmanager
def deaf_server(*, says: bytes = b"") -> Iterator[int]:
    """A port that takes connections and never speaks TLS: it says something else, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    plain, _ = listening.accept()
                    with plain:
                        if says:
                            plain.sendall(says)
                        else:
                            stop.wait(5)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            stop.set()
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
