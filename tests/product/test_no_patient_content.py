"""No word of a record leaves a site by the side door: not in an error, not in a log that leaves, not in a figure.

Each record holds a word that stands nowhere else, and whatever can go wrong at a node goes wrong. What the server gets
is searched for the word, and all that the server writes down of it. The site's own log may quote a record, and does: so
the test would see it.
"""

import json
import logging
from zipfile import ZipFile

import pytest
from custodies import SERVER, announced, run_plan
from fake_grid import FakeGrid, plan, real_nodes
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity
from prometheus_client import CollectorRegistry, generate_latest
from site_folders import make_project, make_site, run_of

from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.report.facts import read_facts
from fedglm.audit.report.items import assess_items
from fedglm.audit.report.page import write_audit_report
from fedglm.cli.watch import describe_run
from fedglm.client import local_trainer
from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.no_answer import NO_ANSWER
from fedglm.client.preflight.data_checks import check_data
from fedglm.client.site.site_node import make_node
from fedglm.client.supernode.metrics import SiteCollector
from fedglm.compression.codec import make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.log.signed_log import LOG
from fedglm.protocol.messages import MODEL, PLAN, RECORD, TrainRequest
from fedglm.run_folder.progress import read_view
from fedglm.server.coordinator import Coordinator
from fedglm.server.deployment.run_log import RunLog
from fedglm.server.superlink.metrics import collect_run_metrics

pytestmark = pytest.mark.usefixtures("unsynced")

CANARY = "Zyxwine"
TRAINING = 'local_steps = 2\nbatch_size = 8\nprecision = "fp32"\ndevice = "cpu"\n'
TABLE = f"""
name = "table"
[data]
source = "./nowhere.csv"
label_field = "class"
feature_fields = ["x", "y"]
feature_ranges = {{ x = [0, 1], y = [0, 1] }}
class_names = ["low", "high"]
[training]
{TRAINING}"""
TEXT = f'name = "text"\n[data]\nsource = "./nowhere.jsonl"\nlength = 32\n[training]\n{TRAINING}'
OWN_TABLE = {
    "source": "../records.csv",
    "label_field": "class",
    "class_names": ["low", "high"],
    "feature_fields": ["x", "y"],
    "unit_field": "patient",
}
OWN_TEXT = {"source": "../records.csv", "text_field": "note", "unit_field": "patient"}

HEAD = "x,y,class,patient,note"
ROW = f"0.5,0.25,high,{CANARY}-7,{CANARY} was seen"


def rows(number=40):
    return [
        f"{i % 10 / 10},{i % 7 / 7},{'high' if i % 3 else 'low'},{CANARY}-{i // 2},{CANARY} {i}" for i in range(number)
    ]


DAMAGE = {
    "a feature that is a word": [*rows(), f"{CANARY},0.1,high,p,n"],
    "a class that nobody knows": [*rows(), f"0.1,0.2,{CANARY},p,n"],
    "too few fields": [*rows(), CANARY],
    "too many fields": [*rows(), f"{ROW},{CANARY},{CANARY}"],
    "a quote that is never closed": [*rows(), f'0.1,0.2,high,p,"{CANARY}'],
    "one patient": [ROW] * 20,
    "an empty class": [*rows(), f"0.1,0.2,,{CANARY},{CANARY}"],
    "no rows": [],
}
"""Rows of a site's file after the line of names."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


class Home:
    """A site behind its real gate, and what it answers to a server's messages."""

    def __init__(self, folder, project, own, scenario, lines):
        self.file = folder / "records.csv"
        self.file.write_text("\n".join([HEAD, *lines, ""]))
        self.site = make_site(folder, project, data=own, policy={"servers": (SERVER.public.hex,)})
        self.scenario, _, self.beside = run_of(scenario)
        self.app = build_client_app(self._place)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def _place(self, _):
        gate = OutboundGate(self.site.custody(), self.site.home, self.site.key())
        return NodeContext(gate, lambda: make_node(self.site, gate.plan, gate.envelope))

    def ask(self, kind, fields):
        content = RecordDict({RECORD: ConfigRecord(fields)})
        message = Message(content, dst_node_id=1, message_type=kind, group_id="1")
        message.metadata.__dict__["_message_id"] = "m"
        return self.app(message, Context(1, 1, {}, RecordDict(), {}))

    def query(self):
        return self.ask("query", {PLAN: announced(run_plan(**self.beside))})

    def train(self, **changes):
        model = make_node(self.site, run_plan(**self.beside), 0)._model
        versions = ModelVersions(model.initial, model.layout.sha256, make_codec("dense-fp32"), grid="fp16")
        order = TrainRequest(
            run="run-1",
            round=1,
            nonce="n",
            layout=self.beside["layout"],
            version=0,
            acknowledged=0,
            learning_rate=self.scenario.training.learning_rate,
            evaluate=False,
        )
        return self.ask("train", {**order.to_fields(), MODEL: versions.message_since(0), **changes})


def leaves(reply):
    """All bytes of a message, as they leave."""
    content = recorddict_to_proto(reply.content).SerializeToString() if reply.has_content() else b""
    return (
        content
        + message_to_proto(reply).SerializeToString()
        + (reply.error.reason.encode() if reply.has_error() else b"")
    )


def assert_silent(home, *replies):
    for reply in replies:
        assert CANARY.encode() not in leaves(reply)
    refusals = home.site.custody_folder / "refusals.jsonl"
    assert CANARY not in (refusals.read_text() if refusals.exists() else "")
    for name in (LOG, LEDGER):
        assert CANARY.encode() not in (home.site.custody_folder / name).read_bytes()
    registry = CollectorRegistry()
    registry.register(SiteCollector(home.site))
    assert CANARY.encode() not in generate_latest(registry)


@pytest.mark.parametrize(("own", "scenario"), [(OWN_TABLE, TABLE), (OWN_TEXT, TEXT)], ids=["table", "text"])
def test_a_node_that_works_tells_no_word_of_its_records(tmp_path, project, own, scenario):
    home = Home(tmp_path, project, own, scenario, rows())
    introduced, update = home.query(), home.train()
    assert not introduced.has_error()
    assert not update.has_error()
    assert_silent(home, introduced, update)


@pytest.mark.parametrize("damage", DAMAGE)
def test_records_that_cannot_be_used_are_quoted_to_nobody(tmp_path, project, caplog, damage):
    home = Home(tmp_path, project, OWN_TABLE, TABLE, DAMAGE[damage])
    with caplog.at_level(logging.WARNING):
        replies = home.query(), home.train()
    assert not any(reply.has_error() for reply in replies[: 1 if damage == "no rows" else 2])
    assert ("cannot be used" in caplog.text) == (damage not in ("one patient", "no rows")), "they are counted"
    assert CANARY not in caplog.text
    assert_silent(home, *replies)
    for finding in check_data(home.site).findings:
        assert CANARY not in f"{finding.detail} {finding.remedy}"


def raising(error):
    def work(*_, **__):
        raise error

    return work


BUGS = [
    RuntimeError(f"in the note {CANARY}"),
    KeyError(CANARY),
    ValueError(f"could not convert {CANARY}"),
    OSError(5, "Input/output error", f"/data/{CANARY}.csv"),
    OSError(28, "No space left on device", f"/data/{CANARY}.csv"),
    UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    MemoryError(CANARY),
    ExceptionGroup(CANARY, [ValueError(CANARY)]),
]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: f"{type(error).__name__} {getattr(error, 'errno', '')}")
def test_not_even_the_kind_of_a_bug_in_training_is_told(tmp_path, project, caplog, monkeypatch, error):
    home = Home(tmp_path, project, OWN_TABLE, TABLE, rows())
    home.query()
    monkeypatch.setattr(local_trainer, "train_locally", raising(error))
    reply = home.train()
    assert reply.has_error()
    assert reply.error.reason == NO_ANSWER
    assert CANARY in caplog.text
    assert_silent(home, reply)


def test_a_server_that_asks_wrongly_learns_nothing(tmp_path, project):
    home = Home(tmp_path, project, OWN_TABLE, TABLE, rows())
    replies = [home.ask("train", {}), home.ask("query", {PLAN: b"none"}), home.ask("query", {})]
    home.query()
    replies += [home.train(**{MODEL: b"damaged"}), home.train(round=10**6), home.train(layout="0" * 64)]
    replies += [home.ask("evaluate", {}), home.train(evaluate=True)]
    assert sum(reply.has_error() for reply in replies) >= 7
    assert_silent(home, *replies)


def test_the_server_writes_down_no_word_of_it_in_log_figure_or_view(tmp_path, monkeypatch):
    """Three sites, of which one fails in its second round with a record in its error."""
    failing = real_nodes(tmp_path / "nodes")
    trained, original = [], local_trainer.train_locally

    def fails(*arguments, **options):
        trained.append(1)
        if len(trained) == 5:
            raise RuntimeError(f"in the note {CANARY}")
        return original(*arguments, **options)

    monkeypatch.setattr(local_trainer, "train_locally", fails)
    folder = tmp_path / "run"
    folder.mkdir()
    log = RunLog(folder)
    coordinator = Coordinator(plan(tmp_path, log=folder / "audit" / "log.sqlite"), FakeGrid(failing), listener=log)
    rows_of = coordinator.run()
    log.finished(coordinator.model_sha256, rows_of)
    view = read_view(folder)
    assert view.rejected == 1
    written = "".join(path.read_text() for path in folder.iterdir() if path.is_file())
    for line in (folder / "events.jsonl").read_text().splitlines():
        assert json.loads(line)["event"]
    figures = str([family.samples for family in collect_run_metrics([view])])
    for text in (written, json.dumps(describe_run(view)), figures):
        assert CANARY not in text
    assert NO_ANSWER in written
    assert "RuntimeError" not in written
    # Nor in what an auditor gets: the server's log, the sites' logs, the report, the bundle.
    (tmp_path / "nodes").rename(folder / "nodes")
    facts = read_facts(folder)
    assert facts.verification.passed
    write_audit_report(facts, assess_items(facts), [], None)
    export_bundle(folder, folder / "bundle.zip", "regulator", SERVER)
    with ZipFile(folder / "bundle.zip") as bundle:
        for name in bundle.namelist():
            assert CANARY.encode() not in bundle.read(name), name
    rejected = [entry for entry in facts.server_entries if entry["kind"] == "rejected"]
    assert [(entry["fault"], entry["rule"]) for entry in rejected] == [("failed", None)]
