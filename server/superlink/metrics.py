"""Prometheus metrics of a federation's server: its sites, its certificate, its runs.

Each scrape reads them from the project's folder and from the SuperLink at 127.0.0.1. Labels are names of sites and runs
that the server's operator gave, and constants of this file: never a text that a node sent.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.names import DONE, EVENTS, FAILED, ROUNDS, RUN
from fedglm.run_folder.progress import RunView, is_run, read_view
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import read_certificate
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project
from fedglm.server.superlink.control import EnrolledNode, list_nodes

_MAX_RUNS = 10  # the most recently modified ones
_FILES = (RUN, ROUNDS, EVENTS, DONE, FAILED)

_RUN_LABELS, _TRAFFIC_LABELS = ["run"], ["run", "direction", "coding"]


class ServerCollector(Collector):
    """Collects for a `prometheus_client.CollectorRegistry`.

    Args:
        project: Project of the server.
        nodes: Lists the SuperLink's nodes; raises `ProjectError` where it does not respond. None asks the SuperLink.
    """

    def __init__(self, project: Project, nodes: Callable[[], list[EnrolledNode]] | None = None) -> None:
        self._project = project
        self._list_nodes = nodes or partial(list_nodes, project)
        self._views: dict[Path, tuple[tuple[int, ...], RunView]] = {}

    def collect(self) -> Iterator[Metric]:
        """Collect the current values of all metrics."""
        unreadable = GaugeMetricFamily(
            "fedglm_exporter_unreadable", "1 where files of this part cannot be read", labels=["part"]
        )
        parts: dict[str, Callable[[], list[Metric]]] = {
            "certificate": self._collect_certificates,
            "sites": self._collect_sites,
            "runs": self._collect_runs,
        }
        for part, collect in parts.items():
            try:
                metrics = collect()
            except (OSError, PrivacyError, ProjectError):
                metrics = []
                unreadable.add_metric([part], 1)
            else:
                unreadable.add_metric([part], 0)
            yield from metrics
        yield unreadable

    def _collect_certificates(self) -> list[Metric]:
        left = GaugeMetricFamily(
            "fedglm_certificate_seconds_left", "Until the certificate ends", labels=["certificate"]
        )
        for name, path in (("server", self._project.certificate), ("authority", self._project.authority)):
            left.add_metric([name], 86400 * read_certificate(path).days_left())
        return [left]

    def _collect_sites(self) -> list[Metric]:
        sites = read_enrolled_sites(self._project)
        try:
            nodes = {node.key: node for node in self._list_nodes()}
            up = 1
        except ProjectError:
            nodes, up = {}, 0
        online = GaugeMetricFamily("fedglm_site_online", "Whether the site's node is connected", labels=["site"])
        seen = GaugeMetricFamily(
            "fedglm_site_last_seen_timestamp_seconds", "When the site's node gave a sign of life", labels=["site"]
        )
        for name, identity in sites.items():
            node = nodes.get(identity.flower)
            online.add_metric([name], node is not None and node.status == "online")
            if node is not None and node.last_seen is not None:
                seen.add_metric([name], node.last_seen.timestamp())
        return [
            GaugeMetricFamily("fedglm_superlink_up", "Whether the SuperLink answers", value=up),
            GaugeMetricFamily("fedglm_sites_enrolled", "Sites that may take part", value=len(sites)),
            online,
            seen,
        ]

    def _collect_runs(self) -> list[Metric]:
        folders = [folder for folder in self._project.runs.iterdir() if folder.is_dir() and is_run(folder)]
        versions = {folder: _read_version(folder) for folder in folders}
        newest = sorted(folders, key=lambda folder: max(versions[folder]))[-_MAX_RUNS:]
        cached, self._views = self._views, {}
        for folder in newest:
            entry = cached.get(folder)
            if entry is None or entry[0] != versions[folder]:
                entry = versions[folder], read_view(folder)
            self._views[folder] = entry
        return collect_run_metrics([view for _, view in self._views.values()])


def collect_run_metrics(views: Iterable[RunView]) -> list[Metric]:
    """Collect the metrics of runs."""
    running = GaugeMetricFamily("fedglm_run_running", "Whether the run goes on", labels=_RUN_LABELS)
    failed = GaugeMetricFamily("fedglm_run_failed", "Whether the run cannot go on as it is", labels=_RUN_LABELS)
    planned = GaugeMetricFamily("fedglm_run_rounds_planned", "Rounds that the run will have", labels=_RUN_LABELS)
    rounds = CounterMetricFamily("fedglm_run_rounds", "Rounds that are on disk", labels=_RUN_LABELS)
    seconds = SummaryMetricFamily("fedglm_run_round_seconds", "What rounds took", labels=_RUN_LABELS)
    last = GaugeMetricFamily("fedglm_run_last_round_seconds", "What the last round took", labels=_RUN_LABELS)
    phases = CounterMetricFamily("fedglm_run_phase_seconds", "What the parts of rounds took", labels=["run", "phase"])
    progress = GaugeMetricFamily(
        "fedglm_run_last_progress_timestamp_seconds", "When the run began, went on or ended a round", labels=_RUN_LABELS
    )
    traffic = CounterMetricFamily(
        "fedglm_run_bytes", "Bytes in messages, coded and as dense float32 would be", labels=_TRAFFIC_LABELS
    )
    updates = CounterMetricFamily(
        "fedglm_run_updates", "Updates that came, folded in or rejected", labels=["run", "outcome"]
    )
    by_site = CounterMetricFamily(
        "fedglm_run_site_updates", "The same by site, the round under way included", labels=["run", "site", "outcome"]
    )
    excluded = GaugeMetricFamily(
        "fedglm_run_nodes_kept_out", "Nodes that refuse the plan, or were turned away", labels=["run", "cause"]
    )
    absences = CounterMetricFamily(
        "fedglm_run_absences", "Updates that rounds did not get because a site was not connected", labels=_RUN_LABELS
    )
    missing = GaugeMetricFamily(
        "fedglm_run_sites_missing", "Sites that no round waits for: absent, or revoked", labels=["run", "cause"]
    )
    epsilon = GaugeMetricFamily(
        "fedglm_run_client_epsilon", "Privacy loss of a whole node against whoever sees the models", labels=_RUN_LABELS
    )
    for view in views:
        run = [view.name]
        running.add_metric(run, view.state == "running")
        failed.add_metric(run, view.state in ("lost", "failed"))
        rounds.add_metric(run, len(view.rows))
        if view.rounds is not None:
            planned.add_metric(run, view.rounds)
        if view.rows:
            durations = [float(row.get("wall_s") or 0.0) for row in view.rows]
            seconds.add_metric(run, count_value=len(durations), sum_value=sum(durations))
            last.add_metric(run, durations[-1])
            if (spent := view.rows[-1].get("client_epsilon")) is not None:
                epsilon.add_metric(run, spent)
        for phase, total in view.phases.items():
            phases.add_metric([*run, phase], total)
        if moments := [moment for moment in (view.began, view.last_round_time) if moment is not None]:
            progress.add_metric(run, max(moments).timestamp())
        sizes = view.traffic
        traffic.add_metric([*run, "up", "coded"], sizes.uplink)
        traffic.add_metric([*run, "down", "coded"], sizes.downlink)
        traffic.add_metric([*run, "up", "dense"], sizes.dense_uplink)
        traffic.add_metric([*run, "down", "dense"], sizes.dense_downlink)
        updates.add_metric([*run, "accepted"], view.accepted)
        updates.add_metric([*run, "rejected"], view.rejected)
        for site in view.sites.values():
            by_site.add_metric([*run, site.name, "accepted"], site.answers)
            by_site.add_metric([*run, site.name, "rejected"], site.rejected)
        absences.add_metric(run, view.absences)
        missing.add_metric([*run, "absent"], sum(site.is_absent for site in view.offline.values()))
        missing.add_metric([*run, "revoked"], len(view.revoked_sites))
        excluded.add_metric([*run, "refused"], len(view.refused))
        excluded.add_metric([*run, "turned-away"], len(view.rejected_nodes))
    return [
        *(running, failed, planned, rounds, seconds, last, phases, progress),
        *(traffic, updates, by_site, absences, missing, excluded, epsilon),
    ]


def _read_version(folder: Path) -> tuple[int, ...]:
    """Return last modification, times and sizes of the run's files; they change when a file does."""
    stats = [path.stat() for path in (folder / name for name in _FILES) if path.exists()]
    times = [stat.st_mtime_ns for stat in stats]
    return (max(times, default=0), *times, *(stat.st_size for stat in stats))
