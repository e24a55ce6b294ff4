"""The server's memory does not grow with the number of nodes: 10 and 1000 replies of 10 million parameters each."""

import itertools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_grid import FakeGrid, Watcher, instruction_of
from flwr.app import ConfigRecord, Message, RecordDict
from plans import make_spec
from source_tree import SUPPORT

from fedglm.compression.codec import make_codec
from fedglm.compression.layout import Layout
from fedglm.compression.settings import DownlinkSettings
from fedglm.privacy.keys.signing import SigningKey
from fedglm.protocol.messages import MODEL, RECORD, UPDATE, JoinReply, TrainReply
from fedglm.server.coordinator import Coordinator
from fedglm.server.run_setup import Plan
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

LAYOUT = Layout(("weights",), ((10_000, 1000),))
FEW, MANY = 10, 1000
DISTINCT = 4
TOLERANCE = 0.05


def slimmed(records):
    return {
        name: ConfigRecord({key: record[key] for key in record if key != MODEL}) for name, record in records.items()
    }


class ForgetfulGrid(FakeGrid):
    """Gives all the replies that are asked for, and keeps neither messages nor replies, as a SuperLink is elsewhere."""

    _numbers = itertools.count()

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(f"m{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            # What a reply needs of it, without the model.
            slim = Message(
                RecordDict(slimmed(message.content.config_records)),
                message.metadata.dst_node_id,
                message.metadata.message_type,
                group_id="",
            )
            slim.metadata.__dict__["_message_id"] = ids[-1]
            self._under_way[ids[-1]] = slim
        return ids

    def pull_messages(self, message_ids):
        asked = [self._under_way.pop(message_id) for message_id in message_ids]
        return [self.nodes[message.metadata.dst_node_id](message) for message in asked]


def node(number, blobs):
    """A node that sends one of the blobs, read afresh from its file."""

    def answer(message):
        if message.metadata.message_type == "query":
            words = JoinReply(name=f"node-{number}", run="", version=-1, layout=LAYOUT.sha256, examples=0)
            return Message(RecordDict({RECORD: ConfigRecord(words.to_fields())}), reply_to=message)
        asked = instruction_of(message.content.config_records[RECORD])
        data = blobs[number % len(blobs)].read_bytes()
        fields = ConfigRecord({**TrainReply(nonce=asked.nonce).to_fields(), UPDATE: data})
        return Message(RecordDict({RECORD: fields}), reply_to=message)

    return answer


class Scales(Watcher):
    """Weighs the process whenever a reply was folded in."""

    most = 0

    def _tell(self, event, *_):
        if event != "reply":
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.most = max(self.most, pages * os.sysconf("SC_PAGE_SIZE"))


def serve(folder, nodes):
    """One round with so many nodes, in this process; returns bytes of memory."""
    blobs = sorted(folder.glob("*.blob"))
    plan = Plan(
        federation=FederationSettings(rounds=1),
        optimizer=ServerOptimizerSettings(),
        spec=make_spec(rounds=1, turns=1, local_steps=1, codec="topk-sign", density=0.01),
        key=SigningKey.generate(),
        downlink=DownlinkSettings(codec="topk-sign", density=0.01),
        learning_rate=0.1,
        layout=LAYOUT,
        initial=np.zeros(LAYOUT.size, np.float32),
        evaluate=None,
        metric="accuracy",
        checkpoints=folder / f"checkpoint-{nodes}",
    )
    scales = Scales()
    coordinator = Coordinator(plan, ForgetfulGrid({i: node(i, blobs) for i in range(1, nodes + 1)}), listener=scales)
    (row,) = coordinator.run()
    assert row["nodes_accepted"] == nodes
    return {"folding": scales.most, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads a process's memory where Linux tells it")
def test_a_thousand_replies_take_no_more_memory_than_ten(tmp_path):
    codec = make_codec("topk-sign", density=0.01)
    total = 0
    for seed in range(DISTINCT):
        blob = codec.encode(np.random.default_rng(seed).standard_normal(LAYOUT.size, np.float32))
        (tmp_path / f"{seed}.blob").write_bytes(blob)
        total += len(blob)
    few, many = (
        json.loads(subprocess.check_output([sys.executable, __file__, str(tmp_path), str(count)], env=SUPPORT))
        for count in (FEW, MANY)
    )
    print(f"bytes with {FEW} replies: {few}, with {MANY}: {many}")
    for what in few:
        assert many[what] <= (1 + TOLERANCE) * few[what], what
    # The bound has teeth: had the server kept the coded replies, it would show.
    assert (MANY - FEW) * total / DISTINCT > 2 * TOLERANCE * few["folding"]


if __name__ == "__main__":
    print(json.dumps(serve(Path(sys.argv[1]), int(sys.argv[2]))))
