"""Serves figures to Prometheus: those of the collectors it is given, and what a daemon's processes use."""

from collections.abc import Iterable, Iterator
from threading import Thread
from wsgiref.simple_server import WSGIServer

import typer
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedglm.cli.daemon import Daemon, DaemonError
from fedglm.cli.process_usage import CpuClock, limits, read_processes


class ProcessCollector(Collector):
    """What a daemon and all that it started use; read from /proc at each scrape.

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
        return start_http_server(port, addr=host, registry=registry)
    except OSError as exc:
        raise DaemonError(
            f"port {port} at {host} cannot be opened ({exc.strerror}): end what holds it (ss -ltnp), or choose another"
        ) from exc
