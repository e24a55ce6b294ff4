import numpy as np
import pytest

from fedglm.autoglm.errors import DataError
from fedglm.autoglm.tasks import Evaluation
from fedglm.client.gate import HEADROOM, OutboundGate, Refusal, fault
from fedglm.client.node import Outcome
from fedglm.client.state import StateError
from fedglm.compression.codec import make_codec
from fedglm.compression.messages import RECORD, UPDATE, Report
from fedglm.privacy.durable import StorageError

SIZE = 40
REPORT = Report(nonce="n")
BLOB = make_codec("dense-fp32").encode(np.linspace(-1, 1, SIZE, dtype=np.float32))


def gate(*, share_metrics=False):
    return OutboundGate(SIZE, share_metrics=share_metrics)


def test_a_good_update_passes_as_it_is():
    content = gate().release(Outcome(REPORT, BLOB))
    assert set(content) == {RECORD}
    assert dict(content[RECORD]) == {"nonce": "n", UPDATE: BLOB}


def test_a_request_for_a_snapshot_carries_nothing_else():
    content = gate().release(Outcome(Report(nonce="n", holds=-1)))
    assert {name: dict(record) for name, record in content.items()} == {RECORD: {"nonce": "n", "holds": -1}}


def refusal_of(outcome):
    with pytest.raises(Refusal) as caught:
        gate().release(outcome)
    assert str(caught.value).startswith(f"refused by rule {caught.value.rule}: ")
    return caught.value


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        BLOB[:-1],
        BLOB + b"\0",
        bytes([BLOB[0] ^ 1]) + BLOB[1:],
        make_codec("dense-fp32").encode(np.ones(SIZE + 1, np.float32)),
    ],
    ids=["empty", "short", "long", "flipped", "other-size"],
)
def test_what_does_not_decode_stays_in(blob):
    assert refusal_of(Outcome(REPORT, blob)).rule == "well-formed"


def test_more_bytes_than_the_model_stay_in():
    assert refusal_of(Outcome(REPORT, bytes(4 * SIZE + HEADROOM + 1))).rule == "size"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (DataError("must be a number, not 'John Doe'"), "DataError: the node's own log says more"),
        (StateError("/srv/site-a/state is damaged"), "StateError: the node's own log says more"),
        (StorageError("cannot write /srv/site-a/state: the disk is full: free some"), "the disk is full"),
        (KeyError("John Doe"), "KeyError: the node's own log says more"),
        (Refusal("size", "too long"), "refused by rule size: too long"),
    ],
)
def test_the_text_of_an_error_stays_at_the_site(error, told):
    assert fault(error, in_full=False) == told
    assert fault(error, in_full=True) == str(error)


def test_metrics_leave_only_where_the_site_lets_them():
    outcome = Outcome(REPORT, BLOB, Evaluation(loss=0.5, metric=0.75, count=8))
    content = gate(share_metrics=True).release(outcome)
    assert dict(content["metrics"]) == {"loss": 0.5, "metric": 0.75, "count": 8}
    assert refusal_of(outcome).rule == "share-metrics"
