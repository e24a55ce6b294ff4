"""Light releases on their way: made at the end of a run, recorded, handed out, and said to be held."""

import json
from dataclasses import replace

import pytest
from audited_run import kept_run
from custodies import SERVER, custody
from fake_grid import FEDERATED, answering
from light_releases import FACTS, make_small_model, read_files, write
from tiny_federation import tiny_node

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.client.light.shelf import LightShelf, hash_manifest
from fedglm.client.light.validation import Validation
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.protocol.messages import RECORD, RELEASE
from fedglm.server.deployment.light_store import LightStore

pytestmark = pytest.mark.usefixtures("unsynced")

SITES = "ab"
GOOD = Validation(passed=True, load_ms=2.0, run_ms=0.5)


class Maker:
    """Writes a small release after a round, as `LightMaker` does, with the next number."""

    def __init__(self, folder, *, first=1, reason=None, key=SERVER):
        self.folder, self.version, self.reason, self.key = folder, first - 1, reason, key

    def make(self, _vector, server_round, model_sha256):
        outcome = LightOutcome(round=server_round, model_sha256=model_sha256, tolerance=0.05)
        if self.reason is not None:
            return replace(outcome, reason=self.reason)
        self.version += 1
        facts = FACTS.model_copy(update={"run": {"version": self.version}})
        size = write(self.folder / "light", model=make_small_model(), key=self.key, facts=facts)
        release = open_release(self.folder / "light", trust=Trust.unverified())
        return replace(outcome, version=self.version, manifest=hash_manifest(release), bytes=size.bytes)


class Federation:
    """Sites a and b, which sign, with their light releases; and a server with a store of its own."""

    def __init__(self, folder, *, check=lambda _: GOOD, **policy):
        self.folder, self.policy = folder, policy
        self.shelves = {name: LightShelf(folder / "light" / name, [SERVER.public], check=check) for name in SITES}
        self.messages = []

    def run(self, name="run", *, maker=None, spoil=None, tamper=None, **changes):
        run = self.folder / name
        run.mkdir(parents=True)
        keys = {site: custody(run / "nodes" / site / "custody", **self.policy).key for site in SITES}
        nodes = {10 - i: self._node(run, site, i, keys[site], spoil, tamper) for i, site in enumerate(SITES)}
        kept_run(
            run,
            nodes,
            mechanism=None,
            sites={site: key.public for site, key in keys.items()},
            light=maker or Maker(run),
            light_store=LightStore(self.folder / "state", SERVER.public, run),
            **changes,
        )
        return run

    def _node(self, run, site, number, key, spoil, tamper):
        node = tiny_node(run / "nodes", site, data_seed=number, rows=20)
        answer = answering(node, key=key, light=self.shelves[site], **self.policy)

        def act(message):
            if message.metadata.message_type == "query.light":
                self.messages.append((site, message.content[RECORD].get(RELEASE)))
                if tamper is not None:
                    message.content[RECORD].update(tamper)
            reply = answer(message)
            if spoil is not None and message.metadata.message_type == "query.light":
                spoil(site, reply)
            return reply

        return act

    def sent(self):
        """Sizes of what was sent since the last call, by site; None for a question."""
        sent = {site: [None if b is None else len(b) for s, b in self.messages if s == site] for site in SITES}
        self.messages.clear()
        return sent


def entries(path, *kinds):
    found = []
    SignedLog(path, on_entry=found.append)
    return [entry for entry in found if entry["kind"] in kinds]


def log_of(run):
    return run / "audit" / "log.sqlite"


def test_each_site_holds_the_release_at_the_end_and_both_logs_verify(tmp_path):
    federation = Federation(tmp_path)
    run = federation.run()
    for shelf in federation.shelves.values():
        assert read_files(shelf.find_newest()) == read_files(run / "light")
    (made,) = entries(log_of(run), "light")
    assert (made["round"], made["version"]) == (3, 1)
    handed = entries(log_of(run), "handed")
    assert {entry["site"] for entry in handed} == {"a", "b"}
    assert {entry["manifest"] for entry in handed} == {made["manifest"]}
    assert select_failed(verify(run).checks) == []
    size = sum(path.stat().st_size for path in (run / "light").iterdir())
    for sent in federation.sent().values():
        assert sent[0] is None
        assert size <= sent[1] <= size + 100
        assert len(sent) == 2


def test_the_next_one_comes_as_a_delta_and_makes_the_same_bytes(tmp_path):
    federation = Federation(tmp_path)
    federation.run("first")
    federation.sent()
    run = federation.run("second", maker=Maker(tmp_path / "second", first=2))
    for shelf in federation.shelves.values():
        assert read_files(shelf.find_newest()) == read_files(run / "light")
    size = sum(path.stat().st_size for path in (run / "light").iterdir())
    assert all(sent[0] is None and sent[1] < size / 2 for sent in federation.sent().values())


def test_one_every_few_rounds_and_the_last_at_the_end(tmp_path):
    federation = Federation(tmp_path)
    run = federation.run(light_every=1)
    assert [entry["round"] for entry in entries(log_of(run), "light")] == [1, 2, 3]
    assert all(shelf.describe()[0] == 3 for shelf in federation.shelves.values())
    # One question a site in a run: later on the server knows what each holds.
    assert all([size is None for size in sent] == [True, False, False, False] for sent in federation.sent().values())


def test_a_run_without_a_release_says_so_in_its_log_and_sends_nothing(tmp_path):
    federation = Federation(tmp_path)
    run = federation.run(maker=Maker(tmp_path / "run", reason="60x was reached at a loss +7.1%"))
    (made,) = entries(log_of(run), "light")
    assert (made["version"], made["manifest"], made["bytes"]) == (None, None, None)
    assert federation.sent() == {"a": [], "b": []}
    assert select_failed(verify(run).checks) == []


def test_sites_take_nothing_older_and_nothing_of_another_server(tmp_path):
    federation = Federation(tmp_path)
    federation.run("first", maker=Maker(tmp_path / "first", first=5))
    held = {site: shelf.describe() for site, shelf in federation.shelves.items()}
    run = federation.run("older", maker=Maker(tmp_path / "older", first=3))
    assert {site: shelf.describe() for site, shelf in federation.shelves.items()} == held
    assert entries(log_of(run), "handed") == []
    # A store whose key is the site's server's opens no foreign release at all.
    run = federation.run("foreign", maker=Maker(tmp_path / "foreign", first=9, key=SigningKey.generate()))
    assert {site: shelf.describe() for site, shelf in federation.shelves.items()} == held
    assert entries(log_of(run), "handed") == []


def test_a_site_that_lost_its_release_gets_a_whole_one_after_the_delta(tmp_path):
    federation = Federation(tmp_path)
    federation.run("first")
    federation.sent()
    path = federation.shelves["a"].find_newest() / "config.json"

    def damage(site, _reply):
        if site == "a" and path.exists():
            path.write_text("{}")

    run = federation.run("second", maker=Maker(tmp_path / "second", first=2), spoil=damage)
    assert read_files(federation.shelves["a"].find_newest()) == read_files(run / "light")
    sent = federation.sent()
    assert len(sent["a"]) == 3
    assert sent["a"][1] < sent["a"][2]
    assert len(sent["b"]) == 2


def test_how_it_works_at_a_site_leaves_only_where_the_policy_permits(tmp_path):
    silent = Federation(tmp_path / "silent")
    run = silent.run()
    assert not (run / "light-validations.json").exists()
    telling = Federation(tmp_path / "telling", light_validation=True)
    run = telling.run()
    told = json.loads((run / "light-validations.json").read_text())
    assert told == {site: {"1": {"passed": True, "load_ms": 2.0, "run_ms": 0.5}} for site in SITES}
    (entry,) = entries(run / "nodes" / "a" / "custody" / "log.sqlite", "validation")
    assert entry["manifest"] == telling.shelves["a"].describe()[1]
    assert "light-validation" in entry["rules"]
    assert entries(tmp_path / "silent" / "run" / "nodes" / "a" / "custody" / "log.sqlite", "validation") == []
    assert select_failed(verify(run).checks) == []


def test_a_release_that_does_not_work_is_not_held_and_why_stays_at_the_site(tmp_path):
    federation = Federation(tmp_path, check=lambda _: Validation(passed=False, detail="its logits are not finite"))
    replies = []
    run = federation.run(spoil=lambda _, reply: replies.append(dict(reply.content[RECORD])))
    assert all(shelf.find_newest() is None for shelf in federation.shelves.values())
    assert entries(log_of(run), "handed") == []
    assert not any("finite" in str(value) for fields in replies for value in fields.values())


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "AAAA"},
        {"manifest": "f" * 64},
        {"version": 7},
        {"validation": "[]"},
        {"surprise": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_reply_that_its_site_did_not_sign_does_no_harm(tmp_path, change):
    federation = Federation(tmp_path, light_validation=True)

    def spoil(site, reply):
        if site == "a":
            for name, value in change.items():
                reply.content[RECORD][name] = value

    run = federation.run(spoil=spoil)
    assert {entry["site"] for entry in entries(log_of(run), "handed")} == {"b"}
    assert FEDERATED.layout.size  # the run itself went to its end
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "tamper",
    [{"run": "another"}, {"surprise": 1}, {"base": 7}, {"release": "text"}, {"release": b"garbage"}],
    ids=lambda tamper: next(iter(tamper)),
)
def test_a_node_takes_no_offer_of_another_run_and_none_that_is_malformed(tmp_path, tamper):
    federation = Federation(tmp_path)
    run = federation.run(tamper=tamper)
    assert all(shelf.find_newest() is None for shelf in federation.shelves.values())
    assert entries(log_of(run), "handed") == []
    assert select_failed(verify(run).checks) == []
