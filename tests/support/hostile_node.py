"""An enrolled site whose node answers as it likes: `python -m hostile_node SITE BEHAVIOUR`, from the tests' folder."""

import importlib
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

FLOOD_MIB = 200
SWELL_MIB = 60  # Flower takes half a second a MiB to put one piece together


def flood(message, _context):
    """Far more than an answer is, in pieces of a MiB."""
    dice = np.random.default_rng(0)
    pieces = {f"a{n}": Array(dice.integers(0, 255, 2**20, dtype=np.uint8)) for n in range(FLOOD_MIB)}
    return Message(RecordDict({"x": ArrayRecord(pieces)}), reply_to=message)


def swell(message, _context):
    """Far too much in one piece."""
    return Message(RecordDict({"x": ConfigRecord({"x": bytes(SWELL_MIB * 2**20)})}), reply_to=message)


def main():
    deployed = importlib.import_module("fedglm.client.supernode.client_app")
    deployed.app = importlib.import_module("fedglm.client.supernode.one_answer").make_single_handler_app(
        globals()[sys.argv[2]]
    )
    sys.argv = sys.argv[:2]
    importlib.import_module("fedglm.cli.client.node").main()


if __name__ == "__main__":
    main()
