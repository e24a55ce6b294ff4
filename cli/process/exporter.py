"""Prometheus exporter: serves the metrics of given collectors, and the resource usage of a daemon's processes.

Every user of the machine may connect, and a node's metrics are served by its own process: therefore few requests are
served at a time, and none for long.
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
from fedglm.cli.process.process_usage import CpuClock, read_limits, read_processes

MAX_CONCURRENT: Final = 4
"""Requests that are served at a time; further connections are closed."""

_REQUEST_TIMEOUT_S: Final = 10.0  # without a byte


class ProcessCollector(Collector):
    """Collects the resource usage of a daemon and its descendants at each scrape.

    Args:
        daemon: The daemon.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._clock = CpuClock()

    def collect(self) -> Iterator[Metric]:
        """Collect the current values of all metrics."""
        pid = self._daemon.pid()
        yield self._make_gauge("fedglm_process_up", "Whether the process runs", pid is not None)
        if pid is None:
            return
        try:
            limits = read_limits(pid)
        except OSError:  # the process has ended meanwhile
            return
        # `members` leaves out the calling process, which may be the daemon.
        processes = read_processes({pid, *self._daemon.members()})
        cpu = CounterMetricFamily(
            "fedglm_process_cpu_seconds", "CPU seconds of the process and all that it started", labels=["process"]
        )
        cpu.add_metric([self._daemon.name], self._clock.read(processes))
        yield cpu
        total = sum(process.memory_bytes for process in processes)
        yield self._make_gauge("fedglm_process_memory_bytes", "What they hold, each shared page counted once", total)
        yield self._make_gauge("fedglm_process_memory_limit_bytes", "What they may hold at most", limits.memory_bytes)
        yield self._make_gauge("fedglm_process_cores", "CPU cores that they may use", limits.cores)
        yield self._make_gauge("fedglm_process_count", "How many processes they are", len(processes))

    def _make_gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["process"])
        family.add_metric([self._daemon.name], value)
        return family


def serve(collectors: Iterable[Collector], *, host: str, port: int) -> None:
    """Serve metrics to Prometheus until Ctrl-C or SIGTERM; arguments and errors as of `start`."""
    server, thread = start(collectors, host=host, port=port)
    url_host = f"[{host}]" if ":" in host else host
    typer.echo(f"figures for Prometheus at http://{url_host}:{port}/metrics; Ctrl-C ends this")
    try:
        thread.join()
    except KeyboardInterrupt:
        server.shutdown()


def start(collectors: Iterable[Collector], *, host: str, port: int) -> tuple[WSGIServer, Thread]:
    """Serve metrics to Prometheus in a thread of this process.

    Args:
        collectors: Collectors of the metrics.
        host: Address of this machine to listen on.
        port: Port to listen on.

    Returns:
        The server and its thread.

    Raises:
        DaemonError: The port cannot be opened.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server = make_server(host, port, make_wsgi_app(registry), _Server if ":" not in host else _IPv6Server, _Request)
    except OSError as exc:
        raise DaemonError(
            f"port {port} at {host} cannot be opened ({exc.strerror}): end what holds it (ss -ltnp), or choose another"
        ) from exc
    thread = Thread(target=server.serve_forever, name="fedglm-figures", daemon=True)
    thread.start()
    return server, thread


class _Request(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_S

    def log_message(self, *_: Any) -> None:
        """Log nothing: Prometheus scrapes every few seconds."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._slots = BoundedSemaphore(MAX_CONCURRENT)
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve the request in a thread if a slot is free, else close the connection."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the request, then release its slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing about closed connections."""


class _IPv6Server(_Server):
    address_family = socket.AF_INET6
