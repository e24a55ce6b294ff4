"""`compress_uplink` and `Compressed` around somebody's own Flower app, and some nodes, joined by hand."""

from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.mods import compress_uplink
from fedglm.protocol.messages import RECORD
from fedglm.server.strategy import Compressed


class Wire:
    """The wrapper and some nodes with the mod, joined by hand; `learn` is each node's own ClientApp."""

    def __init__(self, folder, inner, learn, nodes=2, **options):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.wrapped = Compressed(inner)
        sparse = {} if "codec" in options else {"codec": "topk-fp16", "density": 0.25}
        self.options = sparse | {"residual_decay": 1.0} | options
        self.folder, self.learn, self.nodes = folder, learn, nodes

    def get_node_ids(self):
        """All that the strategy asks of a grid."""
        return range(2, 2 + self.nodes)

    def replies(self, number, arrays):
        mod = compress_uplink(state_dir=self.folder, **self.options)
        replies = []
        for message in self.wrapped.configure_train(number, arrays, ConfigRecord(), self):
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"m{node}"
            message.content = message.content.copy()
            replies.append(mod(message, Context(5, node, {}, RecordDict(), {}), partial(self.learn, node)))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def round(self, number, arrays, spoil=lambda replies: replies):
        return self.wrapped.aggregate_train(number, spoil(self.replies(number, arrays)))


def record(**arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def answer(message, arrays, **metrics):
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 10} | metrics)}
    return Message(RecordDict(content), reply_to=message)


def drift(node, message, _context):
    """Every node moves in its own direction, by a fixed amount a round."""
    assert RECORD not in message.content
    base = {name: array.numpy() for name, array in message.content["arrays"].items()}
    step = np.random.default_rng(node).normal(0, 0.1, base["w"].size).reshape(base["w"].shape).astype(np.float32)
    grown = {"w": base["w"] + step, "n": base["n"] + node, "b": base["b"], "s.running_var": base["s.running_var"] * 0.5}
    return answer(message, record(**grown), loss=float(node))


START = record(
    **{
        "w": np.zeros((4, 6), np.float32),
        "n": np.int64(0),
        "b": np.zeros(3, np.float16),
        "s.running_var": np.array([1.0, 8.0], np.float32),
    }
)


def avg(nodes=2, kind=FedAvg, **options):
    return kind(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, **options)
