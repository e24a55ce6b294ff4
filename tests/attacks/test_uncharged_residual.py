"""What error feedback keeps leaves with the next update: only what was charged for, and noised, may be in it."""

import numpy as np
import pytest
from custodies import OPEN, PRIVATE
from lonely_site import SIZE, Killed, LonelySite, update_of

from fedglm.autoglm.training.local import LocalResult
from fedglm.client import local_trainer
from fedglm.compression.codec import decode
from fedglm.core.files import write_atomically
from fedglm.privacy.custody.store import KEY, POLICY, Custody
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import sign_policy

pytestmark = pytest.mark.usefixtures("unsynced")
SPARSE = {"codec": "topk-fp16", "density": 0.5, "residual_decay": 1.0}


@pytest.fixture
def made(monkeypatch):
    """Training that leaves a mark of its number on every coordinate: 1, 10, 100, ..."""
    marks = []

    def train(*_, **__):
        marks.append(10.0 ** len(marks))
        return LocalResult(np.full(SIZE, marks[-1], np.float32), 0.0, 3)

    monkeypatch.setattr(local_trainer, "train_privately", train)
    monkeypatch.setattr(local_trainer, "train_locally", train)
    return marks


def killed_before_its_charge(site, monkeypatch, number):
    with monkeypatch.context() as dying:

        def killed(*_):
            raise Killed

        dying.setattr(Custody, "charge", killed)
        assert site.train(number) is None
    assert site.rows == []


def marks_in(reply):
    return set(decode(update_of(reply), size=SIZE, codec=SPARSE["codec"]).to_dense().tolist()) - {0.0}


def test_an_attempt_that_was_killed_before_its_charge_leaves_in_no_later_update(tmp_path, monkeypatch, made):
    """Noise met data twice, one row was written, and what leaves would hold both."""
    site = LonelySite(tmp_path, update=SPARSE)
    site.announce(codec=SPARSE["codec"])
    killed_before_its_charge(site, monkeypatch, 1)
    reply = site.train(2, acknowledged=1)  # the server says that it has folded in what never left
    assert (made, len(site.rows)) == ([1.0, 10.0], 1)
    assert marks_in(reply) == {10.0}


def test_what_was_learned_without_noise_leaves_with_no_noised_update(tmp_path, made):
    """The server names a later run like an earlier one, which was of public data and had no noise."""
    site = LonelySite(tmp_path, policy={**OPEN, "private": False}, update=SPARSE)
    site.announce(codec=SPARSE["codec"], mechanism=None)
    site.train(1)
    (row,) = site.rows
    assert row.charge.mechanism is None
    folder = tmp_path / "site" / "custody"
    write_atomically(folder / POLICY, Policy(data_set="patients", **PRIVATE).to_toml())
    sign_policy(folder / POLICY, SigningKey.load(folder / KEY))
    site.start()
    site.use(Custody.open(folder, lambda: [[b"other"], [b"data"]], unit="record"))
    site.announce(codec=SPARSE["codec"])
    reply = site.train(2, acknowledged=1)
    assert (made, len(site.rows)) == ([1.0, 10.0], 2)
    assert marks_in(reply) == {10.0}
