"""What somebody else's app could say to the server past `compress_uplink(custody=...)`."""

import numpy as np
import pytest
from custodies import custody
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.mods import compress_uplink
from fedglm.protocol.messages import RECORD

pytestmark = pytest.mark.usefixtures("unsynced")
DIAGNOSIS = "Jane Doe: HIV positive"
STEP = np.linspace(-1, 1, 20, dtype=np.float32)


@pytest.fixture
def ask(tmp_path):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    mod = compress_uplink("topk-sign", density=0.2, state_dir=tmp_path / "state", custody=tmp_path / "custody")

    def put(answer, kind):
        order = ConfigRecord({"run": "r", "round": 1, "acknowledged": 0})
        start = ArrayRecord({"w": Array(np.zeros(20, np.float32))})
        message = Message(RecordDict({RECORD: order, "arrays": start}), dst_node_id=2, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return mod(message, Context(5, 2, {}, RecordDict(), {}), answer)

    return put


@pytest.fixture(autouse=True)
def site(tmp_path):
    return custody(tmp_path / "custody", metrics=("loss", "metric", "count"), codecs=("topk-sign",))


def reply(message, *, metrics=None, arrays=None):
    content = {"metrics": MetricRecord(metrics or {"accuracy": 0.5})}
    if message.metadata.message_type == "train":
        content["arrays"] = ArrayRecord({name: Array(value) for name, value in ({"w": STEP} | (arrays or {})).items()})
    return Message(RecordDict(content), reply_to=message)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_metadata_is_not_the_app_s_to_write(ask, kind):
    def answer(message, _):
        made = reply(message)
        made.metadata.group_id, made.metadata.ttl = DIAGNOSIS, 1234.5
        return made

    left = ask(answer, kind)
    assert not left.has_error()
    assert (left.metadata.group_id, left.metadata.ttl == 1234.5) == ("", False)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("metrics", [{DIAGNOSIS: 1.0}, {"rows": [float(ord(letter)) for letter in DIAGNOSIS]}])
def test_metrics_are_numbers_under_plain_names(ask, kind, metrics):
    assert ask(lambda message, _: reply(message, metrics=metrics), kind).has_error()


@pytest.mark.parametrize("name", ["records", DIAGNOSIS])
def test_no_array_leaves_beside_the_coded_one_that_the_server_did_not_send(ask, name):
    """It would leave dense, whatever codecs the policy lists."""
    records = np.array([float(ord(letter)) for letter in DIAGNOSIS], np.float32)
    assert ask(lambda message, _: reply(message, arrays={name: records}), "train").has_error()


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_app_that_exits_has_seen_the_data_all_the_same(ask, site, kind):
    def exits(*_):
        raise SystemExit(DIAGNOSIS)

    assert ask(exits, kind).has_error()
    assert len(site.ledger.rows()) == 1
