"""An ordinary Flower app, as its users write it: a small torch network on scikit-learn's digits.

It knows nothing of fedglm but the one line `mods=[...]`. A worker process imports it by this module's name.
"""

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

from fedglm.client.mods import compress_uplink
from fedglm.protocol.messages import RECORD

ROWS_FOR_TESTS = 400


class Network(torch.nn.Sequential):
    """64 pixels to 10 digits; batch normalisation brings running statistics and an integer counter."""

    def __init__(self):
        super().__init__(
            torch.nn.Linear(64, 128),
            torch.nn.BatchNorm1d(128),
            torch.nn.ReLU(),
            torch.nn.Linear(128, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 10),
        )


def initial_arrays():
    torch.manual_seed(0)
    return ArrayRecord(Network().state_dict())


def rows(part=None, parts=1):
    """Pixels and digits of one node, or with `part` None those that are held out."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    chosen = order[:ROWS_FOR_TESTS] if part is None else order[ROWS_FOR_TESTS:][part::parts]
    return torch.tensor(pixels[chosen] / 16, dtype=torch.float32), torch.tensor(digits[chosen])


def accuracy(arrays):
    model = Network()
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    pixels, digits = rows()
    with torch.no_grad():
        return float((model(pixels).argmax(1) == digits).float().mean())


def make_app(mods=()):
    torch.set_num_threads(1)
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        model = Network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        model.train()
        pixels, digits = rows(context.node_config["partition-id"], context.node_config["num-partitions"])
        torch.manual_seed(message.content["config"]["server-round"])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for batch in torch.randperm(len(digits)).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), digits[batch])
            loss.backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(digits), "train-loss": loss.item()}),
        }
        return Message(RecordDict(content), reply_to=message)

    return app


def make_compressed_app(state_dir, codec="topk-sign", density=0.05):
    return make_app([compress_uplink(codec, density=density, state_dir=state_dir)])


def make_app_with_a_liar(state_dir):
    """Node 1 damages what it sends, in round 2."""

    def damage(message, context, call_next):
        reply = call_next(message, context)
        if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
            (record,) = reply.content.array_records.values()
            array = record[RECORD]
            array.data = array.data[:-1] + bytes([array.data[-1] ^ 1])
            record[RECORD] = array
        return reply

    return make_app([damage, compress_uplink(state_dir=state_dir)])
