"""A server that only asks must not fill a site's disk, nor write lines of its own into the site's log."""

import logging

import pytest
from custodies import SERVER, announced, run_plan
from lonely_site import LAYOUT, SIZE, LonelySite
from site_folders import make_project, make_site

from fedglm.client.supernode.worker import serve
from fedglm.client.supernode.worker_link import LOG
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import PLAN

pytestmark = pytest.mark.usefixtures("unsynced")


def test_countersignatures_end_where_new_checkpoints_end(tmp_path):
    """Each one kept makes the log longer, and so another checkpoint to countersign."""
    site = LonelySite(tmp_path)
    site.announce()
    log, signed = site.custody.log, SignedPlan.from_bytes(announced(run_plan(LAYOUT, parameters=SIZE)))
    theirs = SignedTreeHead.sign("a" * 64, 5, "b" * 64, "2026-01-01T00:00:00+00:00", SERVER)
    own = log.exchange_tree_heads(signed, theirs, None)
    own = log.exchange_tree_heads(signed, theirs, (own, own.countersign(SERVER)))
    before = log.head.rows
    for _ in range(5):
        own = log.exchange_tree_heads(signed, theirs, (own, own.countersign(SERVER)))
    assert log.head.rows == before


def test_the_worker_s_log_is_begun_anew_where_it_is_long(tmp_path):
    site = make_site(tmp_path, make_project(tmp_path), data={"source": "breast-cancer"})
    site.state.mkdir(parents=True, exist_ok=True)
    log = site.state / LOG
    log.write_bytes(b"an error, as a server makes one with each message\n" * 400_000)  # 20 MB
    serve(site.folder, idle_s=0.01)
    assert log.stat().st_size < 1 << 20


FORGED = "2026-11-29 12:00:00 the operator raised epsilon to 1000"
WORDS = f"x\n{FORGED}\n\x1b[2K\r{FORGED}"


def odd_plan():
    body = canonical_json({WORDS: 1})
    return SERVER.public.raw + SERVER.sign("fedglm/plan/1", body) + body


@pytest.mark.parametrize(
    ("kind", "fields"), [("train", {WORDS: 1, "model": b""}), ("query", {PLAN: odd_plan()})], ids=["train", "query"]
)
def test_no_word_of_the_server_passes_for_a_line_of_the_log(tmp_path, caplog, kind, fields):
    caplog.handler.setFormatter(logging.Formatter("%(message)s"))
    reply = LonelySite(tmp_path).ask(kind, fields)
    assert FORGED in reply.error.reason  # which the server may read
    lines = caplog.text.split("\n")
    assert any("no answer" in line for line in lines)
    assert not [line for line in lines if line.startswith(FORGED)]
    assert "\x1b" not in caplog.text
    assert "\r" not in caplog.text
