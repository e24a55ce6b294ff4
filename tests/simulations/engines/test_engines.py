"""The engines: the same bits on each, a worker that dies costs one reply, and nothing outlives the grid."""

import os
import signal
import sys
import threading
import time
from functools import partial

import pytest
from command_line import Process, rows_of, soon
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fedglm.simulations.engines.inline_grid import RUN_ID, InlineGrid
from fedglm.simulations.engines.run import _wait_for_nodes

# The grid by itself, with an app of a few lines.


def make_app(fate):
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        seen = int(context.state.config_records["seen"]["count"]) + 1 if "seen" in context.state else 1
        if (fate, node) == ("die", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if (fate, node) == ("raise", 1):
            raise RuntimeError("out of\nmemory")
        if (fate, node) == ("sleep", 1):
            time.sleep(60)
        context.state["seen"] = ConfigRecord({"count": seen})
        words = ConfigRecord({"node": node, "seen": seen, "pid": os.getpid()})
        return Message(RecordDict({"r": words}), reply_to=message)

    return app


def ask(grid, nodes=None, timeout=60):
    messages = [
        Message(RecordDict(), dst_node_id=node_id, message_type="query") for node_id in nodes or grid.get_node_ids()
    ]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    return {reply.metadata.src_node_id: reply for reply in replies}


def words(reply):
    return reply.content.config_records["r"]


def test_more_nodes_than_workers_and_a_context_that_stays():
    with InlineGrid(partial(make_app, ""), nodes=5, workers=2) as grid:
        for turn in (1, 2):
            replies = ask(grid)
            assert sorted(words(reply)["node"] for reply in replies.values()) == [0, 1, 2, 3, 4]
            assert {words(reply)["seen"] for reply in replies.values()} == {turn}
            assert len({words(reply)["pid"] for reply in replies.values()}) <= 2


def test_a_worker_that_dies_costs_its_node_the_reply_and_no_other():
    with InlineGrid(partial(make_app, "die"), nodes=4, workers=2) as grid:
        for _ in range(2):
            replies = ask(grid)
            assert len(replies) == 4
            failed = [reply for reply in replies.values() if reply.has_error()]
            assert len(failed) == 1
            assert failed[0].error.reason == "the worker process died (exit code -9)"


def test_an_exception_in_an_app_is_that_nodes_answer():
    with InlineGrid(partial(make_app, "raise"), nodes=2, workers=1) as grid:
        replies = ask(grid)
        failed = [reply.error.reason for reply in replies.values() if reply.has_error()]
        assert failed == ["RuntimeError: out of\nmemory"]


def test_time_runs_out_and_leaving_ends_a_worker_that_is_busy():
    started = time.monotonic()
    answered = []

    def leave():
        with InlineGrid(partial(make_app, "sleep"), nodes=2, workers=2) as grid:
            answered.extend([ask(grid, nodes=[1]), ask(grid, nodes=[2], timeout=0.5)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert [len(replies) for replies in answered] == [1, 0]
    assert time.monotonic() - started < 30


KILLED = """
import time
from functools import partial
from fedglm.simulations.engines import inline_grid
inline_grid._PRELOAD = []  # torch, of which these workers know nothing
if __name__ == "__main__":
    with inline_grid.InlineGrid(partial(time.sleep, 600), nodes=2, workers=2):
        print("ready", flush=True)
        time.sleep(600)
"""


def test_workers_end_with_a_process_that_is_killed_though_they_are_busy():
    with Process(prefix=(sys.executable, "-c", KILLED)) as process:
        process.read_until("ready")
        assert soon(lambda: len(process.workers()) == 2)
        process.kill()
        assert soon(lambda: process.descendants() == set()), "workers outlive the process that was killed"


def test_a_message_to_nobody_is_refused():
    with InlineGrid(partial(make_app, ""), nodes=1) as grid, pytest.raises(ValueError, match="no node 7"):
        ask(grid, nodes=[7])


def test_the_server_waits_until_flower_has_registered_all_nodes():
    class Slow(Grid):
        """Has one node more each time one looks."""

        def __init__(self):
            self.known = 0

        def get_node_ids(self):
            self.known += 1
            return list(range(self.known))

    Slow.__abstractmethods__ = frozenset()
    seen = []
    app = ServerApp()

    @app.main()
    def main(grid, context):  # noqa: ARG001 (Flower's signature)
        seen.append(grid.known)

    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), {})
    _wait_for_nodes(app, 3, threading.Event())(Slow(), context)
    assert seen == [3]


# The whole command.


def test_one_worker_gives_the_bits_of_two(fedglm, finished, tmp_path):
    options = ("--out", tmp_path / "run", "--workers", "1", "--json")
    summary = fedglm("simulate", finished.toml, *options).json
    assert summary["model_sha256"] == finished.summary["model_sha256"]
    assert [row["loss"] for row in rows_of(tmp_path / "run")] == [row["loss"] for row in finished.rows]


@pytest.mark.slow
def test_ray_gives_the_same_bits(finished, tmp_path):
    with Process("simulate", finished.toml, "--engine", "ray", "--out", tmp_path / "run", "--json") as process:
        result = process.finish()
        assert soon(lambda: process.descendants() == set())
    assert result.json["engine"] == "ray"
    assert result.json["model_sha256"] == finished.summary["model_sha256"]
    for mine, theirs in zip(rows_of(tmp_path / "run"), finished.rows, strict=True):
        assert {**mine, "wall_s": 0} == {**theirs, "wall_s": 0}
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_many_nodes_under_ray(fedglm, finished, tmp_path):
    settings = ("--nodes", "20", "--rounds", "2", "--set", "federation.fraction=0.5", "--json")
    here = fedglm("simulate", finished.toml, *settings, "--out", tmp_path / "inline").json
    with Process("simulate", finished.toml, *settings, "--out", tmp_path / "ray", "--engine", "ray") as process:
        assert process.finish().json["model_sha256"] == here["model_sha256"]
    assert here["nodes"] == 20


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_time_and_nothing_else(fedglm, tiny, tmp_path):
    """Its node is asked again, and trains again with the same seed."""
    folder = tmp_path / "run"
    options = ("--rounds", "3", "--nodes", "4", "--set", "training.local_steps=60", "--workers", "2")
    with Process("simulate", tiny, *options, "--out", folder, "--json") as process:
        process.until(lambda: len(rows_of(folder)) == 1)
        process.until(lambda: process.workers() != set())
        time.sleep(0.1)
        os.kill(min(process.workers()), signal.SIGKILL)
        result = process.finish()
        assert process.descendants() == set()
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert [(row["nodes_accepted"], row["nodes_rejected"]) for row in rows_of(folder)] == [(4, 0)] * 3
    undisturbed = fedglm("simulate", tiny, *options, "--out", tmp_path / "calm", "--json").json
    assert result.json["model_sha256"] == undisturbed["model_sha256"]


@pytest.mark.slow
def test_a_worker_that_dies_each_time_is_given_up(tiny, tmp_path):
    folder = tmp_path / "run"
    settings = ("--rounds", "2", "--nodes", "4", "--set", "training.local_steps=60", "--set", "federation.resends=0")
    with Process("simulate", tiny, *settings, "--workers", "2", "--out", folder) as process:
        process.until(lambda: len(rows_of(folder)) == 1)
        process.until(lambda: process.workers() != set())
        time.sleep(0.1)
        os.kill(min(process.workers()), signal.SIGKILL)
        result = process.finish()
        assert process.descendants() == set()
    assert result.code == 0, result.err
    (row,) = (row for row in rows_of(folder) if row["nodes_rejected"])
    (reason,) = row["rejections"].values()
    assert "the worker process died (exit code -9)" in reason
    assert "was rejected:" in result.err
    assert "Traceback" not in result.err
