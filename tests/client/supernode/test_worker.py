"""The site's worker: started by the first message, one at a time, never of old files, and nothing lost when it dies."""

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from custodies import announced, run_plan
from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from site_folders import make_project, make_site, run_of
from used_releases import write_used_release

from fedglm.client.no_answer import NO_ANSWER
from fedglm.client.supernode import worker_link
from fedglm.client.supernode.worker_link import LOG, SOCKET, WorkerError, WorkerRequest, ask
from fedglm.inference.release.archive import pack_release
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey
from fedglm.protocol.messages import PLAN, RECORD, JoinReply, LightReply

TRIAL = """
name = "trial"
[data]
source = "breast-cancer"
[training]
local_steps = 2
batch_size = 8
precision = "fp32"
device = "cpu"
"""
NO_PLAN = WorkerRequest("query", "0", recorddict_to_proto(RecordDict({})).SerializeToString())


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def site(tmp_path_factory, project):
    made = make_site(tmp_path_factory.mktemp("home"), project, data={"source": "breast-cancer", "share": "0/2"})
    yield made
    end_workers(made.folder)


def workers(folder):
    """Processes of workers of a site."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"fedglm.client.supernode.worker_process" in words and os.fsencode(folder) in words:
                found.add(int(entry.name))
    return found


def end_workers(folder):
    for pid in workers(folder):
        os.kill(pid, signal.SIGKILL)


def plan_query():
    _, _, beside = run_of(TRIAL)
    blob = announced(run_plan(**beside))
    content = RecordDict({RECORD: ConfigRecord({PLAN: blob})})
    return WorkerRequest("query", "0", recorddict_to_proto(content).SerializeToString())


def test_a_worker_is_started_once_and_answers_from_then_on(site):
    answers = [ask(site.folder, NO_PLAN) for _ in range(3)]
    code, reason = answers[0].error
    assert code == int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    assert "it announces no plan" in reason
    assert answers == [answers[0]] * 3
    assert len(workers(site.folder)) == 1
    assert stat.S_IMODE((site.state / SOCKET).stat().st_mode) == 0o600
    assert stat.S_IMODE((site.state / LOG).stat().st_mode) == 0o600


def test_an_answer_is_the_node_s_own_and_signed(site):
    said = ask(site.folder, plan_query())
    assert said.error is None, said.error
    fields = recorddict_from_proto(RecordDictProto.FromString(said.content)).config_records[RECORD]
    words = JoinReply.from_fields(fields)
    assert (words.name, words.version) == (site.name, -1)
    assert words.signature


def test_a_light_release_is_verified_tried_and_kept_by_the_worker(site, project, tmp_path):
    ask(site.folder, plan_query())
    release = open_release(
        write_used_release(tmp_path / "release", project.signing_key, version=4),
        trust=Trust.in_keys([project.signing_key.public]),
    )

    def offer(**fields):
        content = RecordDict({RECORD: ConfigRecord({"run": "run-1", **fields})})
        request = WorkerRequest("query.light", "1", recorddict_to_proto(content).SerializeToString())
        reply = ask(site.folder, request)
        assert reply.error is None
        content = recorddict_from_proto(RecordDictProto.FromString(reply.content))
        held = LightReply.from_fields(content.config_records[RECORD])
        assert held.signature is not None
        assert held.validation is None  # the policy does not permit it
        return held.version, held.fault

    assert offer() == (-1, None)
    assert offer(release=pack_release(release)) == (4, None)
    assert open_release(site.light_shelf().find_newest(), trust=Trust.in_keys([project.signing_key.public]))
    foreign = write_used_release(tmp_path / "foreign", SigningKey.generate(), version=5)
    version, fault = offer(release=pack_release(open_release(foreign, trust=Trust.unverified())))
    assert version == 4
    assert "signed by" in fault


def test_a_worker_is_looked_for_where_it_listens(tmp_path, monkeypatch):
    """A path in `site.toml` may begin with ~."""
    states = []

    def connect(_, state):
        states.append(state)
        raise WorkerError("far enough")

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(worker_link, "_connect", connect)
    (tmp_path / "site.toml").write_text('[site]\nstate = "~/state"\n')
    with pytest.raises(WorkerError, match="far enough"):
        ask(tmp_path, NO_PLAN)
    assert states == [tmp_path / "home" / "state"]


@pytest.mark.slow
def test_messages_that_come_at_once_meet_one_worker(site):
    end_workers(site.folder)
    answers = []
    asking = [threading.Thread(target=lambda: answers.append(ask(site.folder, NO_PLAN))) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [answers[0]] * 4
    time.sleep(0.2)  # those that came too late to be the one are ending
    deadline = time.monotonic() + 60
    while len(workers(site.folder)) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers(site.folder)) == 1


@pytest.mark.slow
def test_a_worker_that_was_killed_is_replaced(site):
    ask(site.folder, NO_PLAN)
    before = workers(site.folder)
    end_workers(site.folder)
    ask(site.folder, NO_PLAN)
    assert workers(site.folder).isdisjoint(before)


@pytest.mark.slow
def test_a_worker_that_dies_over_a_message_is_replaced_and_asked_again(site):
    expected = ask(site.folder, NO_PLAN)
    (pid,) = workers(site.folder)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, lambda: os.kill(pid, signal.SIGKILL)).start()
    assert ask(site.folder, NO_PLAN) == expected


@pytest.mark.slow
def test_a_worker_that_dies_each_time_is_an_error(site, monkeypatch):
    monkeypatch.setattr(worker_link, "_MAX_ATTEMPTS", 1)
    ask(site.folder, NO_PLAN)
    (pid,) = workers(site.folder)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, lambda: os.kill(pid, signal.SIGKILL)).start()
    with pytest.raises(WorkerError, match="ended 1 times before it answered"):
        ask(site.folder, NO_PLAN)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["site.toml", "kit.toml", "policy.toml"])
def test_a_file_that_was_changed_ends_the_worker_that_had_read_it(site, name):
    ask(site.folder, NO_PLAN)
    (before,) = workers(site.folder)
    path = site.custody_folder / name if name == "policy.toml" else site.folder / name
    text, logged = path.read_text(), (site.state / LOG).stat().st_size
    path.write_text(text + "\n# a comment\n")
    try:
        answer = ask(site.folder, NO_PLAN)
        assert before not in workers(site.folder)
        if name == "policy.toml":
            # It is not signed as it lies there, which the site's own log says, and the answer does not.
            assert answer.error[1] == NO_ANSWER
            assert "PolicyError" in (site.state / LOG).read_text()[logged:]
    finally:
        path.write_text(text)


@pytest.mark.slow
def test_a_worker_that_nobody_asks_ends(site):
    end_workers(site.folder)
    imports = "from pathlib import Path; from fedglm.client.supernode.worker import serve"
    script = f"{imports}; serve(Path({str(site.folder)!r}), 0.2)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    assert not (site.state / SOCKET).exists()


def test_what_is_no_message_costs_nothing(site):
    ask(site.folder, NO_PLAN)
    before = workers(site.folder)
    with socket.socket(socket.AF_UNIX) as link, worker_link.open_short_path(site.state) as here:
        link.connect(f"{here}/{SOCKET}")
        link.sendall(b"\0\0\0\4oops")
    ask(site.folder, NO_PLAN)
    assert workers(site.folder) == before


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_where_to_look(site, monkeypatch):
    end_workers(site.folder)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match=r"does not start: see worker\.log"):
        ask(site.folder, NO_PLAN)
