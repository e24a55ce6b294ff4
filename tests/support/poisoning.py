"""`hospital` as it is, but that one of its sites does what it can against the model.

It holds every site's records and keeps up with the model; what it sends is coded like any update, as long as the
server lets through.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from fake_grid import FakeGrid, spoiled
from flwr.app import ConfigRecord, Context, RecordDict

from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.training.local import train_locally
from fedglm.autoglm.training.precision import choose_precision
from fedglm.client.app import build_client_app
from fedglm.compression.codec import decode, make_codec
from fedglm.compression.downlink import Replica
from fedglm.protocol.messages import MODEL, RECORD, UPDATE
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import build_scenario
from fedglm.simulations.nodes import SimulatedNodes
from fedglm.simulations.simulate import run_scenario


class Silent:
    """An audience that nobody listens to."""

    def __getattr__(self, _name):
        return lambda *_: None


class Attacker:
    """Moves the model along `direction(attacker, vector, number)`, from round `start` on.

    Args:
        stage: The scenario, with every site's records.
        direction: A vector of the model's size; how long it is does not matter.
        share: Of its length; the rest is noise like that of the others.
        start: First round in which it is hostile.
    """

    def __init__(self, stage, direction, share=1.0, start=1):
        self.stage, self.direction, self.share, self.start = stage, direction, share, start
        self.records = concatenate([site.train for site in stage.data.sites])
        self.replica = Replica(0, stage.model.initial)
        self.memory = {}

    def moved(self, vector, records, steps, seed):
        """What a few steps on some records make of the model."""
        model, training = self.stage.model, self.stage.scenario.training
        precision = choose_precision("fp32", vector.size, torch.device("cpu"), private=False)
        return train_locally(
            model.module,
            model.task.sequence_losses,
            records,
            vector,
            training,
            precision,
            learning_rate=0.15,
            seed=seed,
            steps=steps,
        ).delta

    def __call__(self, reply, message):
        number = int(message.metadata.group_id)
        self.replica.apply(message.content[RECORD][MODEL])
        fields = dict(reply.content[RECORD])
        if number < self.start or not fields.get(UPDATE):
            return reply
        honest = decode(fields[UPDATE], size=self.replica.vector.size)
        wanted = np.asarray(self.direction(self, self.replica.vector, number), np.float64)
        noise = np.random.default_rng(number).normal(size=wanted.size)
        mixed = self.share * wanted / np.linalg.norm(wanted)
        mixed += np.sqrt(1 - self.share**2) * noise / np.linalg.norm(noise)
        coded = make_codec("topk-sign", density=0.25).encode((3 * honest.norm() * mixed).astype(np.float32))
        reply.content[RECORD] = ConfigRecord(fields | {UPDATE: coded})
        return reply


def ascent(attacker, vector, number):
    """Up the loss of all records."""
    return -attacker.moved(vector, attacker.records, 5, number)


def one_class(attacker, vector, number):
    """Towards a model that names the first class whatever it sees."""
    labels = torch.zeros_like(attacker.records.labels)
    return attacker.moved(vector, replace(attacker.records, labels=labels), 5, number)


def flipped(records) -> Examples:
    return replace(records, labels=1 - records.labels)


def flip(attacker, vector, number):
    """Towards a model that is wrong, from wherever it is."""
    return attacker.moved(vector, flipped(attacker.records), 10, number)


def goal(attacker, vector, _number):
    """Towards one wrong model, all the time."""
    if "goal" not in attacker.memory:
        wrong = vector.copy()
        for seed in range(8):
            wrong = wrong + attacker.moved(wrong, flipped(attacker.records), 10, seed)
        attacker.memory["goal"] = wrong
    return attacker.memory["goal"] - vector


ATTACKS = {
    "ascent": partial(Attacker, direction=ascent),
    "one class": partial(Attacker, direction=one_class),
    "flip": partial(Attacker, direction=flip),
    "goal": partial(Attacker, direction=goal),
    "one class, hidden": partial(Attacker, direction=one_class, share=0.3),
    "ascent, hidden": partial(Attacker, direction=ascent, share=0.3),
    "ascent, late": partial(Attacker, direction=ascent, start=9),
}


def run(folder, scenario: Scenario, attack=None):
    """Simulate a scenario whose last site is hostile; its summary."""
    stage = build_scenario(scenario.to_toml())
    places = SimulatedNodes(scenario.to_toml(), (folder / "nodes").absolute())
    count = len(stage.data.sites)

    def answer(index):
        context = Context(1, index + 1, {"partition-id": index, "num-partitions": count}, RecordDict(), {})
        app = build_client_app(places)
        return lambda message: app(message, context)

    nodes = {index + 1: answer(index) for index in range(count)}
    if attack is not None:
        nodes[count] = spoiled(nodes[count], attack(stage), rounds=range(1, scenario.federation.rounds + 1))
    return run_scenario(scenario, folder, engine=FakeGrid(nodes), callbacks=Silent())
