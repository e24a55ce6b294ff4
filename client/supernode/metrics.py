"""What Prometheus is told of a site's node: its privacy budget, what it refused, when it last worked, what room it has.

Read at each scrape from the site's folder. Labels are the site's own name for its data set and words of our code: never
a record, the name of a field, or a text that a server sent.
"""

import datetime
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedglm.client.site.folder import Site
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.custody.store import LEDGER, POLICY, REFUSALS, is_initialized
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy

_WORK = ("run.plan", "*/state.json")  # what a node writes when a server's message has come
_UPDATES = "*/pending_blob-*"


class SiteCollector(Collector):
    """Collects for a `prometheus_client.CollectorRegistry`.

    Args:
        site: Whose figures.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._budget: tuple[object, list[Metric]] = (None, [])

    def collect(self) -> Iterator[Metric]:
        """All figures, as they are now."""
        unreadable = GaugeMetricFamily(
            "fedglm_exporter_unreadable", "1 where files of this part cannot be read", labels=["part"]
        )
        parts: dict[str, Callable[[], list[Metric]]] = {
            "ledger": self._ledger,
            "refusals": self._refusals,
            "state": self._state,
            "disk": self._disk,
        }
        for part, read in parts.items():
            try:
                found = read()
            except (OSError, PrivacyError):
                found = []
                unreadable.add_metric([part], 1)
            else:
                unreadable.add_metric([part], 0)
            yield from found
        yield unreadable

    def _ledger(self) -> list[Metric]:
        """Verified, and counted by the accountant, only when policy or ledger have changed: both take their time."""
        custody = self._site.custody_folder
        in_force = GaugeMetricFamily("fedglm_site_policy_in_force", "Whether the site has signed what may leave")
        in_force.add_metric([], is_initialized(custody))
        if not is_initialized(custody):
            return [in_force]
        stats = [(custody / name).stat() for name in (LEDGER, POLICY)]
        stamp = [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]
        if self._budget[0] != stamp:
            policy = load_policy(custody / POLICY, self._site.key().public)
            self._budget = stamp, _of_ledger(Ledger(custody / LEDGER), policy)
        return [in_force, *self._budget[1]]

    def _refusals(self) -> list[Metric]:
        summary = RefusalLog(self._site.custody_folder / REFUSALS).summary()
        refusals = CounterMetricFamily("fedglm_site_refusals", "What the site refused, by rule", labels=["rule"])
        for rule, number in summary.by_rule.items():
            refusals.add_metric([rule], number)
        last = GaugeMetricFamily("fedglm_site_last_refusal_timestamp_seconds", "When the site last refused something")
        if summary.last is not None:
            last.add_metric([], _seconds(summary.last.time))
        return [refusals, last]

    def _state(self) -> list[Metric]:
        home = self._site.home
        last = GaugeMetricFamily(
            "fedglm_site_last_message_timestamp_seconds", "When the node last took up a message of the server"
        )
        if written := [path.stat().st_mtime for pattern in _WORK for path in home.glob(pattern)]:
            last.add_metric([], max(written))
        size = GaugeMetricFamily("fedglm_site_update_bytes", "Size of the coded update that the node made last")
        made = [path.stat() for path in home.glob(_UPDATES)]
        if made:
            size.add_metric([], max(made, key=lambda stat: stat.st_mtime_ns).st_size)
        return [last, size]

    def _disk(self) -> list[Metric]:
        free = GaugeMetricFamily("fedglm_site_disk_free_bytes", "Room on the disk of the folder", labels=["folder"])
        size = GaugeMetricFamily("fedglm_site_disk_bytes", "Size of the disk of the folder", labels=["folder"])
        for name, folder in (("state", self._site.state), ("custody", self._site.custody_folder)):
            disk = shutil.disk_usage(_existing(folder))
            free.add_metric([name], disk.free)
            size.add_metric([name], disk.total)
        return [free, size]


def _of_ledger(ledger: Ledger, policy: Policy) -> list[Metric]:
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
            last.add_metric([name], _seconds(own[-1].time))
        if name == policy.data_set and policy.epsilon is not None:
            limit.add_metric([name], policy.epsilon)
            if epsilon is not None:
                left.add_metric([name], max(0.0, policy.epsilon - epsilon))
    return [spent, limit, left, releases, last]


def _existing(folder: Path) -> Path:
    """The folder, or what is there of the path to it."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _seconds(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment).timestamp()
