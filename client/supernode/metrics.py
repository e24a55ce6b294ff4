"""Prometheus metrics of a site's node: privacy budget, refusals, time of the last work, disk space.

They are read from the site's folder at each scrape. Labels are the site's own name for its data set and words from our
code: never a record, the name of a field, or a text that a server sent.
"""

import datetime
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedglm.client.link.faults import LinkFault
from fedglm.client.link.state import LinkState
from fedglm.client.site.folder import Site
from fedglm.client.site.status import find_last_work
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.custody.store import LEDGER, POLICY, REFUSALS, is_initialized
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy

_UPDATES = "*/pending_blob-*"


class SiteCollector(Collector):
    """Collector of a site's metrics, for a `prometheus_client.CollectorRegistry`.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._budget: tuple[object, list[Metric]] = (None, [])

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics with their current values."""
        unreadable = GaugeMetricFamily(
            "fedglm_exporter_unreadable", "1 where files of this part cannot be read", labels=["part"]
        )
        parts: dict[str, Callable[[], list[Metric]]] = {
            "ledger": self._collect_ledger,
            "refusals": self._collect_refusals,
            "state": self._collect_state,
            "link": self._collect_link,
            "disk": self._collect_disk,
        }
        for part, collect_part in parts.items():
            try:
                metrics = collect_part()
            except (OSError, PrivacyError):
                metrics = []
                unreadable.add_metric([part], 1)
            else:
                unreadable.add_metric([part], 0)
            yield from metrics
        yield unreadable

    def _collect_ledger(self) -> list[Metric]:
        """Verify the ledger and compute its epsilon, only when policy or ledger have changed: both take time."""
        custody = self._site.custody_folder
        in_force = GaugeMetricFamily("fedglm_site_policy_in_force", "Whether the site has signed what may leave")
        in_force.add_metric([], is_initialized(custody))
        if not is_initialized(custody):
            return [in_force]
        stats = [(custody / name).stat() for name in (LEDGER, POLICY)]
        stamp = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]
        if self._budget[0] != stamp:
            policy = load_policy(custody / POLICY, self._site.key().public)
            self._budget = stamp, _make_budget_metrics(Ledger(custody / LEDGER), policy)
        return [in_force, *self._budget[1]]

    def _collect_refusals(self) -> list[Metric]:
        summary = RefusalLog(self._site.custody_folder / REFUSALS).summary()
        refusals = CounterMetricFamily("fedglm_site_refusals", "What the site refused, by rule", labels=["rule"])
        for rule, number in summary.by_rule.items():
            refusals.add_metric([rule], number)
        last = GaugeMetricFamily("fedglm_site_last_refusal_timestamp_seconds", "When the site last refused something")
        if summary.last is not None:
            last.add_metric([], _to_seconds(summary.last.time))
        return [refusals, last]

    def _collect_state(self) -> list[Metric]:
        last = GaugeMetricFamily(
            "fedglm_site_last_message_timestamp_seconds", "When the node last took up a message of the server"
        )
        if (last_work := find_last_work(self._site)) is not None:
            last.add_metric([], last_work)
        size = GaugeMetricFamily("fedglm_site_update_bytes", "Size of the coded update that the node made last")
        updates = [path.stat() for path in self._site.home.glob(_UPDATES)]
        if updates:
            size.add_metric([], max(updates, key=lambda stat: stat.st_mtime_ns).st_size)
        return [last, size]

    def _collect_link(self) -> list[Metric]:
        """Tell of the link as the node recorded it last: of use beside `fedglm_process_up`."""
        connected = GaugeMetricFamily("fedglm_site_connected", "Whether the server answered the node's last request")
        since = GaugeMetricFamily("fedglm_site_link_since_timestamp_seconds", "When that last changed")
        fault = GaugeMetricFamily("fedglm_site_link_fault", "1 for why there is no link", labels=["fault"])
        link = LinkState.read(self._site.state)
        connected.add_metric([], link is not None and link.connected)
        if link is not None:
            since.add_metric([], link.since.timestamp())
        for kind in LinkFault:
            fault.add_metric([kind.value], link is not None and link.fault is kind)
        return [connected, since, fault]

    def _collect_disk(self) -> list[Metric]:
        free = GaugeMetricFamily("fedglm_site_disk_free_bytes", "Room on the disk of the folder", labels=["folder"])
        size = GaugeMetricFamily("fedglm_site_disk_bytes", "Size of the disk of the folder", labels=["folder"])
        for name, folder in (("state", self._site.state), ("custody", self._site.custody_folder)):
            disk = shutil.disk_usage(_find_existing_parent(folder))
            free.add_metric([name], disk.free)
            size.add_metric([name], disk.total)
        return [free, size]


def _make_budget_metrics(ledger: Ledger, policy: Policy) -> list[Metric]:
    label = ["data_set"]
    spent = GaugeMetricFamily(
        "fedglm_site_epsilon_spent", "Privacy loss so far; infinite after a release without noise", labels=label
    )
    limit = GaugeMetricFamily("fedglm_site_epsilon_limit", "Privacy loss that the policy permits", labels=label)
    left = GaugeMetricFamily("fedglm_site_epsilon_left", "Privacy loss that is left", labels=label)
    releases = CounterMetricFamily("fedglm_site_releases", "What has left", labels=["data_set", "purpose"])
    last = GaugeMetricFamily("fedglm_site_last_release_timestamp_seconds", "When something last left", labels=label)
    rows = ledger.rows()
    for name in {policy.data_set, *(row.charge.data_set for row in rows)}:
        own = [row for row in rows if row.charge.data_set == name]
        if (epsilon := ledger.spending(name).epsilon(policy.delta)) is not None:
            spent.add_metric([name], epsilon)
        for purpose, number in Counter(row.charge.purpose for row in own).items():
            releases.add_metric([name, purpose], number)
        if own:
            last.add_metric([name], _to_seconds(own[-1].time))
        if name == policy.data_set and policy.epsilon is not None:
            limit.add_metric([name], policy.epsilon)
            if epsilon is not None:
                left.add_metric([name], max(0.0, policy.epsilon - epsilon))
    return [spent, limit, left, releases, last]


def _find_existing_parent(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _to_seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()
