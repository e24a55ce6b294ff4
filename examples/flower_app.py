"""A Flower app that sends a hundredth of its bytes, by two lines: four nodes learn to read digits.

    pip install 'fedglm[simulation]'
    python examples/flower_app.py

prints the accuracy on held-out digits after eight rounds, and the bytes that went up beside those of float32:

    accuracy 91.3%
    1,230,080 bytes of float32, 12,307 sent: 100 times fewer

All but the two lines marked below is Flower's own, and goes to a SuperLink and SuperNodes as it is.
"""

import tempfile

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits

from fedglm import Compressed, compress_uplink

NODES, ROUNDS, HELD_OUT = 4, 8, 400


def make_model() -> torch.nn.Module:
    """64 pixels to 10 digits, from the same weights each time."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))


def rows(node: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and digits of a node; without one, those that no node holds."""
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    chosen = order[:HELD_OUT] if node is None else order[HELD_OUT:][node::NODES]
    return torch.tensor(pixels[chosen] / 16, dtype=torch.float32), torch.tensor(digits[chosen])


def make_client_app(state_dir: str) -> ClientApp:
    """The nodes' side.

    Args:
        state_dir: Where a node keeps what it has not sent yet; a folder of its own for each app.
    """
    app = ClientApp(mods=[compress_uplink("topk-sign", density=0.05, state_dir=state_dir)])  # the first line

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = make_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        pixels, digits = rows(int(context.node_config["partition-id"]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(int(message.content["config"]["server-round"]))
        for batch in torch.randperm(len(digits)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(pixels[batch]), digits[batch]).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(digits)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


def make_server_app() -> ServerApp:
    """The server's side: trains, then prints."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        strategy = Compressed(FedAvg(fraction_evaluate=0.0))  # the second line
        arrays = ArrayRecord(make_model().state_dict())
        result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=ROUNDS)
        model, (pixels, digits) = make_model(), rows()
        model.load_state_dict(result.arrays.to_torch_state_dict())
        accuracy = (model(pixels).argmax(1) == digits).float().mean()
        dense, sent = strategy.dense_uplink_bytes, strategy.uplink_bytes
        print(f"accuracy {accuracy:.1%}")
        print(f"{dense:,} bytes of float32, {sent:,} sent: {dense / sent:.0f} times fewer")

    return app


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    with tempfile.TemporaryDirectory() as state:
        run_simulation(server_app=make_server_app(), client_app=make_client_app(state), num_supernodes=NODES)
