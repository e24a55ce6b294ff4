"""What Prometheus is told of a federation's server: its sites, its certificate, its runs.

Read anew at each scrape from the project's folder, and asked of the SuperLink at 127.0.0.1. Labels are names of sites
and runs that the server's operator gave, and words of this file: never a text that a node sent.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.names import DONE, EVENTS, FAILED, ROUNDS, RUN
from fedglm.run_folder.progress import RunView, is_run, read_view
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import read_certificate
from fedglm.server.project.enrolment import enrolled_sites
from fedglm.server.project.folder import Project
from fedglm.server.superlink.control import Control, EnrolledNode

_MAX_RUNS = 10  # those of which something was written last
_FILES = (RUN, ROUNDS, EVENTS, DONE, FAILED)

_RUN, _WAY = ["run"], ["run", "direction", "coding"]


class ServerCollector(Collector):
    """Collects for a `prometheus_client.CollectorRegistry`.

    Args:
        project: Whose figures.
        nodes: Asks the SuperLink for its list; raises `ProjectError` where it does not answer.
    """

    def __init__(self, project: Project, nodes: Callable[[], list[EnrolledNode]] | None = None) -> None:
        self._project = project
        self._nodes = nodes or self._ask
        self._views: dict[Path, tuple[tuple[int, ...], RunView]] = {}

    def collect(self) -> Iterator[Metric]:
        """All figures, as they are now."""
        unreadable = GaugeMetricFamily(
            "fedglm_exporter_unreadable", "1 where files of this part cannot be read", labels=["part"]
        )
        parts: dict[str, Callable[[], list[Metric]]] = {
            "certificate": self._certificates,
            "sites": self._sites,
            "runs": self._runs,
        }
        for part, read in parts.items():
            try:
                found = read()
            except (OSError, PrivacyError, ProjectError):
                found = []
                unreadable.add_metric([part], 1)
            else:
                unreadable.add_metric([part], 0)
            yield from found
        yield unreadable

    def _ask(self) -> list[EnrolledNode]:
        with Control(self._project) as control:
            return control.nodes()

    def _certificates(self) -> list[Metric]:
        left = GaugeMetricFamily(
            "fedglm_certificate_seconds_left", "Until the certificate ends", labels=["certificate"]
        )
        for name, path in (("server", self._project.certificate), ("authority", self._project.authority)):
            left.add_metric([name], 86400 * read_certificate(path).days_left())
        return [left]

    def _sites(self) -> list[Metric]:
        sites = enrolled_sites(self._project)
        try:
            nodes = {node.key: node for node in self._nodes()}
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

    def _runs(self) -> list[Metric]:
        folders = [folder for folder in self._project.runs.iterdir() if folder.is_dir() and is_run(folder)]
        stamps = {folder: _stamp(folder) for folder in folders}
        newest = sorted(folders, key=lambda folder: max(stamps[folder]))[-_MAX_RUNS:]
        known, self._views = self._views, {}
        for folder in newest:
            before = known.get(folder)
            if before is None or before[0] != stamps[folder]:
                before = stamps[folder], read_view(folder)
            self._views[folder] = before
        return run_figures([view for _, view in self._views.values()])


def run_figures(views: Iterable[RunView]) -> list[Metric]:
    """What is told of runs."""
    running = GaugeMetricFamily("fedglm_run_running", "Whether the run goes on", labels=_RUN)
    failed = GaugeMetricFamily("fedglm_run_failed", "Whether the run cannot go on as it is", labels=_RUN)
    planned = GaugeMetricFamily("fedglm_run_rounds_planned", "Rounds that the run will have", labels=_RUN)
    rounds = CounterMetricFamily("fedglm_run_rounds", "Rounds that are on disk", labels=_RUN)
    seconds = SummaryMetricFamily("fedglm_run_round_seconds", "What rounds took", labels=_RUN)
    last = GaugeMetricFamily("fedglm_run_last_round_seconds", "What the last round took", labels=_RUN)
    phases = CounterMetricFamily("fedglm_run_phase_seconds", "What the parts of rounds took", labels=["run", "phase"])
    progress = GaugeMetricFamily(
        "fedglm_run_last_progress_timestamp_seconds", "When the run began, went on or ended a round", labels=_RUN
    )
    traffic = CounterMetricFamily(
        "fedglm_run_bytes", "Bytes in messages, coded and as dense float32 would be", labels=_WAY
    )
    updates = CounterMetricFamily(
        "fedglm_run_updates", "Updates that came, folded in or rejected", labels=["run", "outcome"]
    )
    by_site = CounterMetricFamily(
        "fedglm_run_site_updates", "The same by site, the round under way included", labels=["run", "site", "outcome"]
    )
    kept_out = GaugeMetricFamily(
        "fedglm_run_nodes_kept_out", "Nodes that refuse the plan, or were turned away", labels=["run", "cause"]
    )
    epsilon = GaugeMetricFamily(
        "fedglm_run_client_epsilon", "Privacy loss of a whole node against whoever sees the models", labels=_RUN
    )
    for view in views:
        run = [view.name]
        running.add_metric(run, view.state == "running")
        failed.add_metric(run, view.state in ("lost", "failed"))
        rounds.add_metric(run, len(view.rows))
        if view.rounds is not None:
            planned.add_metric(run, view.rounds)
        if view.rows:
            took = [float(row.get("wall_s") or 0.0) for row in view.rows]
            seconds.add_metric(run, count_value=len(took), sum_value=sum(took))
            last.add_metric(run, took[-1])
            if (spent := view.rows[-1].get("client_epsilon")) is not None:
                epsilon.add_metric(run, spent)
        for phase, total in view.phases.items():
            phases.add_metric([*run, phase], total)
        if moments := [moment for moment in (view.began, view.last_round_time) if moment is not None]:
            progress.add_metric(run, max(moments).timestamp())
        bytes_of = view.traffic
        traffic.add_metric([*run, "up", "coded"], bytes_of.uplink)
        traffic.add_metric([*run, "down", "coded"], bytes_of.downlink)
        traffic.add_metric([*run, "up", "dense"], bytes_of.dense_uplink)
        traffic.add_metric([*run, "down", "dense"], bytes_of.dense_downlink)
        updates.add_metric([*run, "accepted"], view.accepted)
        updates.add_metric([*run, "rejected"], view.rejected)
        for site in view.sites.values():
            by_site.add_metric([*run, site.name, "accepted"], site.answers)
            by_site.add_metric([*run, site.name, "rejected"], site.rejected)
        kept_out.add_metric([*run, "refused"], len(view.refused))
        kept_out.add_metric([*run, "turned-away"], len(view.rejected_nodes))
    return [
        *(running, failed, planned, rounds, seconds, last, phases, progress),
        *(traffic, updates, by_site, kept_out, epsilon),
    ]


def _stamp(folder: Path) -> tuple[int, ...]:
    """Changes when a file of the run does."""
    found = [path.stat() for path in (folder / name for name in _FILES) if path.exists()]
    times = [stat.st_mtime_ns for stat in found]
    return (max(times, default=0), *times, *(stat.st_size for stat in found))
