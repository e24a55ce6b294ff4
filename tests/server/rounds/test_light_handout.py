"""Light releases on their way: made at the end of a run, recorded, handed out, and said to be held."""

import pytest
from custodies import SERVER
from fake_grid import FEDERATED
from light_federation import Federation, Maker, entries, log_of, unfit, validation_of
from light_releases import read_files
from virtual_clock import VirtualClock

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.client.light.shelf import hash_manifest
from fedglm.inference.release.manifest import hash_to_hex
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import Check, read_validation, sign_validation
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import RECORD
from fedglm.protocol.signatures import sign_light_reply
from fedglm.server.rounds.participants import Participant, Participants

pytestmark = pytest.mark.usefixtures("unsynced")


def test_each_site_holds_the_release_at_the_end_and_both_logs_verify(tmp_path):
    federation = Federation(tmp_path)
    run = federation.run()
    for shelf in federation.shelves.values():
        assert read_files(shelf.find_newest()) == read_files(run / "light")
    (made,) = entries(log_of(run), "light")
    assert (made["round"], made["version"]) == (1, 1)
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
    run = federation.run(light_every=1, rounds=3)
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


def test_nothing_is_handed_out_that_is_older_than_what_sites_were_offered(tmp_path, caplog):
    federation = Federation(tmp_path)
    federation.run("first", maker=Maker(tmp_path / "first", first=5))
    held = {site: shelf.describe() for site, shelf in federation.shelves.items()}
    run = federation.run("older", maker=Maker(tmp_path / "older", first=3))
    assert {site: shelf.describe() for site, shelf in federation.shelves.items()} == held
    assert {entry["version"] for entry in entries(log_of(run), "handed")} == {5}
    assert "light release 3 is not handed out: sites were offered 5" in caplog.text


def test_what_another_server_signed_is_not_handed_out(tmp_path):
    federation = Federation(tmp_path)
    run = federation.run(maker=Maker(tmp_path / "run", key=SigningKey.generate()))
    assert federation.sent() == {"a": [], "b": []}
    assert entries(log_of(run), "handed") == []


def test_another_release_in_the_folder_than_was_made_is_not_handed_out(tmp_path):
    """As when somebody makes the model light by hand into the run's folder, with the server's own key."""

    class Replaced(Maker):
        def make(self, *arguments):
            made = super().make(*arguments)
            super().make(*arguments)
            return made

    federation = Federation(tmp_path)
    run = federation.run(maker=Replaced(tmp_path / "run"))
    assert federation.sent() == {"a": [], "b": []}
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


def test_a_site_that_was_away_gets_it_in_the_next_run_which_makes_none(tmp_path):
    federation = Federation(tmp_path)
    clock = VirtualClock()
    first = federation.run("first", lose=lambda site, _: "message" if site == "a" else None, clock=clock)
    assert federation.shelves["a"].find_newest() is None
    assert {entry["site"] for entry in entries(log_of(first), "handed")} == {"b"}
    assert 60 <= clock.now < 200  # the others waited for it once
    federation.sent()
    second = federation.run("second", maker=False)
    assert read_files(federation.shelves["a"].find_newest()) == read_files(first / "light")
    assert {entry["site"] for entry in entries(log_of(second), "handed")} == {"a", "b"}
    sent = federation.sent()
    assert (len(sent["a"]), sent["b"]) == (2, [None])
    assert select_failed(verify(second).checks) == []


def test_a_site_whose_reply_was_lost_is_asked_again_and_sent_nothing_twice(tmp_path):
    """After the release of round 1 nothing is made; the reply comes after round 2, with the validation."""
    federation = Federation(tmp_path, light_validation=True)
    lost = []

    def lose(site, release):
        if site == "a" and release is not None and not lost:
            lost.append(site)
            return "reply"
        return None

    run = federation.run(
        maker=Maker(tmp_path / "run", most=1), light_every=1, lose=lose, rounds=2, clock=VirtualClock()
    )
    assert lost
    handed = entries(log_of(run), "handed")
    assert sorted((entry["site"], entry["version"]) for entry in handed) == [("a", 1), ("b", 1)]
    sent = federation.sent()
    assert [size is None for size in sent["a"]] == [True, False, True]
    assert [size is None for size in sent["b"]] == [True, False]
    assert {path.name for path in (run / "light-validations" / "0000000001").iterdir()} == {"a.json", "b.json"}
    (entry,) = entries(run / "nodes" / "a" / "custody" / "log.sqlite", "validation")  # said twice, the same
    assert entry["manifest"] == handed[0]["manifest"]
    assert select_failed(verify(run).checks) == []


def test_a_site_that_never_replies_delays_a_run_three_times_at_most(tmp_path):
    federation = Federation(tmp_path)
    clock = VirtualClock()
    run = federation.run(
        maker=Maker(tmp_path / "run", most=1), light_every=1, rounds=4, clock=clock,
        lose=lambda site, _: "message" if site == "a" else None,
    )  # fmt: skip
    assert federation.sent()["a"] == [None] * 3
    assert clock.now < 3 * 121
    assert {entry["site"] for entry in entries(log_of(run), "handed")} == {"b"}


def test_a_run_that_was_killed_before_it_came_to_a_release_makes_it_when_it_goes_on(tmp_path):
    federation = Federation(tmp_path)

    def kill(*event):
        if event == ("done", 1):
            raise KeyboardInterrupt

    options = {"maker": Maker(tmp_path / "run", most=1), "light_every": 1, "rounds": 2}
    with pytest.raises(KeyboardInterrupt):
        federation.run(hook=kill, **options)
    assert entries(log_of(tmp_path / "run"), "light") == []
    run = federation.run(resume=True, **options)
    made = entries(log_of(run), "light")
    assert [(entry["round"], entry["version"]) for entry in made] == [(1, 1), (2, None)]
    assert len(entries(log_of(run), "handed")) == 2
    assert select_failed(verify(run).checks) == []


def test_a_site_whose_budget_is_spent_is_among_those_that_get_it():
    spent = Participant(name="a", node_id=1, withdrawn="its budget is spent")
    participants = Participants([spent, Participant(name="b", node_id=2), Participant(name="c")])
    assert [member.name for member in participants.joined] == ["a", "b"]
    assert [member.name for member in participants.active] == ["b"]


def test_a_site_damages_its_release_and_gets_the_same_again(tmp_path):
    federation = Federation(tmp_path)
    first = federation.run("first")
    (federation.shelves["b"].find_newest() / "config.json").write_text("{}")
    federation.run("second", maker=False)
    assert read_files(federation.shelves["b"].find_newest()) == read_files(first / "light")


def test_how_it_works_at_a_site_leaves_only_where_the_policy_permits(tmp_path):
    silent = Federation(tmp_path / "silent")
    run = silent.run()
    assert not (run / "light-validations").exists()
    telling = Federation(tmp_path / "telling", light_validation=True)
    run = telling.run()
    release = open_release(run / "light", trust=Trust.in_keys([SERVER.public]))
    for site, shelf in telling.shelves.items():
        blob = (run / "light-validations" / "0000000001" / f"{site}.json").read_bytes()
        read = read_validation(blob, trust=Trust.in_keys([telling.keys[site].public]))
        assert read.validation == shelf.read_validation(hash_manifest(release))
        assert hash_to_hex(read.validation.manifest_sha256) == hash_manifest(release)
    (entry,) = entries(run / "nodes" / "a" / "custody" / "log.sqlite", "validation")
    assert entry["manifest"] == telling.shelves["a"].describe()[1]
    assert "light-validation" in entry["rules"]
    assert entries(tmp_path / "silent" / "run" / "nodes" / "a" / "custody" / "log.sqlite", "validation") == []
    assert select_failed(verify(run).checks) == []


def test_a_validation_that_the_policy_keeps_for_its_size_does_not_keep_the_reply(tmp_path):
    check = Check(name="x", passed=True, detail=400 * "x")
    federation = Federation(
        tmp_path,
        check=lambda release: validation_of(release).model_copy(update={"checks": 15 * (check,)}),
        light_validation=True,
        bytes_at_most=6000,
    )
    run = federation.run()
    assert {entry["site"] for entry in entries(log_of(run), "handed")} == {"a", "b"}
    assert not (run / "light-validations").exists()
    refused = entries(run / "nodes" / "a" / "custody" / "log.sqlite", "refused")
    assert {entry["rule"] for entry in refused} == {"bytes"}


@pytest.mark.parametrize("told", [False, True])
def test_a_release_that_does_not_work_is_not_held_and_why_stays_at_the_site(tmp_path, told):
    federation = Federation(tmp_path, check=unfit, light_validation=told)
    replies = []
    run = federation.run(
        maker=Maker(tmp_path / "run", most=1),
        light_every=1,
        rounds=2,
        spoil=lambda _, reply: replies.append(dict(reply.content[RECORD])),
    )
    assert all(shelf.find_newest() is None for shelf in federation.shelves.values())
    assert entries(log_of(run), "handed") == []
    assert any("off by 100" in str(value) for fields in replies for value in fields.values()) is told
    assert (run / "light-validations").exists() is told
    # It is not sent again to a site where it does not work, but in the next run, for then it may.
    assert all([size is None for size in sent] == [True, False] for sent in federation.sent().values())
    federation.run("next", maker=False)
    assert all([size is None for size in sent] == [True, False] for sent in federation.sent().values())


@pytest.mark.parametrize("whose", ["another key's", "another release's", "nobody's"])
def test_a_validation_that_is_not_the_site_s_own_of_this_release_is_not_kept(tmp_path, whose):
    """The site signs the message with it, so that no broker is to blame."""
    federation = Federation(tmp_path, light_validation=True)

    def spoil(site, reply):
        fields, key = reply.content[RECORD], federation.keys[site]
        if "validation" not in fields:
            return
        made = read_validation(fields["validation"].encode(), trust=Trust.in_keys([key.public])).validation
        if whose == "another release's":
            made = made.model_copy(update={"manifest_sha256": "a" * 43})
        signed = sign_validation(made, SigningKey.generate() if whose == "another key's" else key).decode()
        plan = SignedPlan.from_bytes((tmp_path / "run" / "nodes" / site / "run.plan").read_bytes()).plan
        fields["validation"] = "[]" if whose == "nobody's" else signed
        fields["signature"] = sign_light_reply(key, dict(fields), plan.sha256)

    run = federation.run(spoil=spoil)
    assert len(entries(log_of(run), "handed")) == 2
    assert not (run / "light-validations").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"signature": "AAAA"},
        {"manifest": "f" * 64},
        pytest.param({"version": 7}, marks=pytest.mark.slow),  # under the same signature
        pytest.param({"validation": "[]"}, marks=pytest.mark.slow),
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
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 1


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
