"""Serves figures to Prometheus: those of the collectors it is given, and what a daemon's processes use.

Every user of the machine may connect, and a node's figures are served by its own process: so few are served at a time,
and none for long.
"""

import socket
from collections.abc import Iterable, Iterator
from socketserver import ThreadingMixIn
from threading import BoundedSemaphore, Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import typer
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedglm.cli.process.daemon import Daemon, DaemonError
from fedglm.cli.process.process_usage import CpuClock, limits, read_processes

AT_ONCE: Final = 4
"""Requests that are answered at a time; whoever comes then is hung up on."""

_REQUEST_S: Final = 10.0  # without a byte


class ProcessCollector(Collector):
    """What a daemon and all that it started use, as it is at each scrape.

    Args:
        daemon: Whose processes.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._clock = CpuClock()

    def collect(self) -> Iterator[Metric]:
        """All figures, as they are now."""
        pid = self._daemon.pid()
        yield self._figure("fedglm_process_up", "Whether the process runs", pid is not None)
        if pid is None:
            return
        try:
            most = limits(pid)
        except OSError:  # it has ended meanwhile
            return
        processes = read_processes({pid, *self._daemon.members()})  # the asker, which may be it, is no member
        cpu = CounterMetricFamily(
            "fedglm_process_cpu_seconds", "CPU seconds of the process and all that it started", labels=["process"]
        )
        cpu.add_metric([self._daemon.name], self._clock.read(processes))
        yield cpu
        held = sum(process.memory_bytes for process in processes)
        yield self._figure("fedglm_process_memory_bytes", "What they hold, each shared page counted once", held)
        yield self._figure("fedglm_process_memory_limit_bytes", "What they may hold at most", most.memory_bytes)
        yield self._figure("fedglm_process_cores", "CPU cores that they may use", most.cores)
        yield self._figure("fedglm_process_count", "How many processes they are", len(processes))

    def _figure(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["process"])
        family.add_metric([self._daemon.name], value)
        return family


def serve(collectors: Iterable[Collector], *, host: str, port: int) -> None:
    """Answer Prometheus until Ctrl-C or SIGTERM; arguments and errors as of `start`."""
    server, thread = start(collectors, host=host, port=port)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"figures for Prometheus at http://{shown}:{port}/metrics; Ctrl-C ends this")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


def start(collectors: Iterable[Collector], *, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Answer Prometheus in a thread of this process.

    Args:
        collectors: What to serve.
        host: Address of this machine to listen on.
        port: There.

    Returns:
        The server and its thread.

    Raises:
        DaemonError: The port cannot be opened.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server = make_server(host, port, make_wsgi_app(registry), _Server if ":" not in host else _Server6, _Request)
    except OSError as exc:
        raise DaemonError(
            f"port {port} at {host} cannot be opened ({exc.strerror}): end what holds it (ss -ltnp), or choose another"
        ) from exc
    thread = Thread(target=server.serve_forever, name="fedglm-figures", daemon=True)
    thread.start()
    return server, thread


class _Request(WSGIRequestHandler):
    timeout = _REQUEST_S

    def log_message(self, *_: Any) -> None:
        """Say nothing: Prometheus asks every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._free = BoundedSemaphore(AT_ONCE)
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, where one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer; then somebody else may come."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of who hung up, or was hung up on."""


class _Server6(_Server):
    address_family = socket.AF_INET6
