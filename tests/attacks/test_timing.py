"""How long a round takes at a site follows from the records that were drawn: answers leave at a fixed cadence."""

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.supernode import client_app
from fedglm.client.supernode.worker_link import WorkerError, WorkerReply

EVERY_S = 0.5


class Clock:
    """Time that passes only where somebody sleeps."""

    now = 1000.25

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(client_app, "time", made, raising=False)
    return made


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("work_s", "ticks"), [(0.0, 1), (0.125, 1), (0.375, 1), (0.625, 2), (7.25, 15)])
def test_an_answer_leaves_a_whole_number_of_ticks_after_its_question(
    tmp_path, monkeypatch, clock, work_s, ticks, fails
):
    (tmp_path / "site.toml").write_text(f"[site]\nanswer_every_s = {EVERY_S}\n")
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def ask(*_):
        clock.sleep(work_s)
        if fails:
            raise WorkerError("it died over a record")
        return WorkerReply((1, "no"))

    monkeypatch.setattr(client_app, "ask", ask)
    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    message.metadata.__dict__["_message_id"] = "m"
    began = clock.now
    client_app.app(message, Context(1, 1, {"site": str(tmp_path)}, RecordDict(), {}))
    assert clock.now - began == ticks * EVERY_S
