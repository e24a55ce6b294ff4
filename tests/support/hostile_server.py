"""A server that holds the plan's key and asks a site whatever it likes; and the site, behind its real gate."""

from dataclasses import dataclass

from custodies import SERVER, announced, run_plan
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from site_folders import make_site, run_of

from fedglm.client.supernode.worker import make_site_app
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.protocol.messages import MODEL, PLAN, RECORD, UPDATE, TrainRequest
from fedglm.scenarios.deployment import build_deployed_model
from fedglm.scenarios.scenario import Scenario

POLICY = {
    "without_differential_privacy": False,
    "servers": (SERVER.public.hex,),
    "epsilon": 50.0,
    "delta": 1e-3,
    "declare_units": 20,
    "unit": "record",
    "records_per_unit_at_most": 4,
    "noise_multiplier_at_least": 1.0,
    "clipping_norm_at_most": 1.0,
    "metrics": ("loss", "metric", "count"),
}
"""Noise alone, and measures with noise."""


@dataclass(frozen=True)
class Seen:
    """What the server sees of a reply, but for bytes that noise decides: its kind, names, and sizes.

    Attributes:
        error: Code and text; None for a reply with content.
        fields: Name and length of each field of the reply.
        measures: Names of the measures.
    """

    error: tuple[int, str] | None
    fields: tuple[tuple[str, int], ...] = ()
    measures: tuple[str, ...] = ()

    @classmethod
    def of(cls, reply):
        if reply.has_error():
            return cls((reply.error.code, reply.error.reason))
        fields = reply.content.config_records[RECORD].items()
        measured = reply.content.metric_records.get("metrics", {})
        return cls(None, tuple(sorted((name, _length(value)) for name, value in fields)), tuple(sorted(measured)))


def _length(value):
    return len(value) if isinstance(value, bytes | str) else -1


class Asked:
    """One site, and the server that asks it.

    Args:
        home: Folder for the site.
        project: Of the server; its kit makes the site.
        data: The site's `[data]`.
        records: Content of its file, bytes.
        policy: What differs from `POLICY`.
    """

    def __init__(self, home, project, data, records, policy=()):
        home.mkdir(parents=True, exist_ok=True)
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.site = make_site(home, project, data=data, policy=POLICY | dict(policy))
        (self.site.folder / data["source"]).write_bytes(records)
        self._app = make_site_app(self.site)
        self.plan = None

    def ask(self, kind, fields, group="1"):
        """Any message at all."""
        message = Message(RecordDict({RECORD: ConfigRecord(fields)}), dst_node_id=1, message_type=kind, group_id=group)
        message.metadata.__dict__["_message_id"] = "m"
        return self._app(message, Context(1, 1, {}, RecordDict(), {}))

    def announce(self, scenario_toml, **changes):
        """A plan of the scenario, and what of it is to be said otherwise."""
        _, _, beside = run_of(scenario_toml)
        self._model = build_deployed_model(Scenario.from_toml(scenario_toml)).model
        self.plan = run_plan(**{**beside, **changes})
        return self.ask("query", {PLAN: announced(self.plan)})

    def instruct(self, kind="train", *, downlink=None, **changes):
        """An instruction for version 0, with the model as an honest server sends it."""
        if downlink is None:
            layout = self._model.layout.sha256
            downlink = ModelVersions(self._model.initial, layout, make_codec("topk-sign")).message_since(0)
        order = {
            "run": self.plan.run,
            "round": 1,
            "nonce": "0" * 16,
            "layout": self.plan.layout,
            "version": 0,
            "acknowledged": 0,
            "learning_rate": 2e-3,
            "evaluate": False,
        }
        instruction = TrainRequest(**{**order, **changes})
        return self.ask(kind, {**instruction.to_fields(), MODEL: downlink}, str(instruction.round))

    @property
    def charges(self):
        """Rows of the site's ledger."""
        return len(Ledger(self.site.custody_folder / "ledger.sqlite").rows())


def update_of(reply):
    """The coded update in a reply; None without."""
    return None if reply.has_error() else reply.content.config_records[RECORD].get(UPDATE)
