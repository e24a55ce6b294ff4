"""Traps of differential privacy that no single module can be held to: what a whole node must not do.

The node's own promises are checks, and a seeded fault must fail the check that stands for it, as in
`test_client_private_training.py`. What is banned is looked for in the source.
"""

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clipping_reference import glm
from custodies import MECHANISM, custody
from ledgers import sha256
from private_steps import NOBODY, tape, train
from seeded_faults import ledger_reset, paced_by_held_out_data, residual_before_noise
from source_tree import SOURCES, root_of
from tiny_federation import examples, federated_model, tiny_node
from torch import nn
from transformers import AutoModelForCausalLM

from fedglm.autoglm.models.lora import merge_adapters
from fedglm.autoglm.models.parameters import federated_parameters
from fedglm.client import private_training
from fedglm.client.exchange import Authorization
from fedglm.client.state.node_state import NodeState
from fedglm.compression.codec import CodecError, decode, make_codec
from fedglm.compression.downlink import ModelVersions
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import LogError, PrivacyError, Refusal
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import TrainRequest
from fedglm.server.rounds.checkpoint import CheckpointError, load_latest

pytestmark = pytest.mark.usefixtures("unsynced")

FEDERATED = federated_model()
SIZE = FEDERATED.layout.size
SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 1.0}


def asked(node, mechanism, *, declared, metrics=None):
    """A node's first answer; its learning rate is 1."""
    versions = ModelVersions(FEDERATED.initial, FEDERATED.layout.sha256, make_codec("dense-fp32"), grid="fp16")
    instruction = TrainRequest(
        run="run-1",
        round=1,
        nonce="n",
        layout=FEDERATED.layout.sha256,
        version=0,
        acknowledged=0,
        learning_rate=1.0,
        evaluate=metrics is not None,
    )
    authorization = Authorization(mechanism, metrics, declared, lambda: None, lambda _: True)
    return node.train(instruction, versions.message_since(0), authorization)


# --- what a node promises


def check_what_was_spent_outlives_the_node(folder, _patch):
    """A site that starts again knows what it has spent, holds the server's anchor, and refuses what does not fit."""
    two, three = (compute_epsilon([MECHANISM.event()] * rounds, 1e-3).epsilon for rounds in (2, 3))

    def site():
        return custody(folder / "custody", private=True, epsilon=(two + three) / 2)

    def pay(number):
        started_again = site()
        content = sha256(f"update {number}")
        charge = started_again.make_charge(
            "run", number, MECHANISM, sha256("plan"), content, purpose="update", attempt=content[:32]
        )
        started_again.charge(Release(charge, 100))
        return started_again.log.head

    anchors = [pay(1), pay(2)]
    assert all(site().log.contains(anchor) for anchor in anchors)
    assert [row.charge.round for row in site().ledger.rows()] == [1, 2]
    with pytest.raises(Refusal, match="epsilon-budget"):
        pay(3)


def check_what_is_kept_back_was_noised_before(folder, _patch):
    """Where nobody was drawn, all that is sent and all that waits for later rounds is noise, of its full scale."""
    values = []
    for number in range(20):
        update = {"codec": "topk-fp16", "density": 0.2, "residual_decay": 1.0}
        node = tiny_node(folder, f"node-{number}", model=FEDERATED, update=update, **SGD)
        sent = decode(asked(node, NOBODY, declared=10**12).blob, size=SIZE).to_dense()
        kept = NodeState.load(node.folder, SIZE, run="run-1").pending.residual
        # Chosen by their noised size: what stays is smaller than what goes.
        assert np.abs(kept[sent == 0]).max() <= np.abs(sent[sent != 0]).min() * (1 + 1e-3)
        values.append(sent + kept)
    assert np.std(values) == pytest.approx(NOBODY.noise_std * NOBODY.steps**0.5, rel=0.1)


def check_held_out_data_decide_nothing_that_leaves(folder, patch):
    """Learning-rate schedules and early stopping by private records would be releases without noise."""
    patch.setattr(private_training, "GaussianNoise", lambda: GaussianNoise(tape()))
    answers = []
    for name, seed in (("a", 1), ("b", 2)):
        node = tiny_node(folder, name, model=FEDERATED, **SGD)
        node._trainer._held_out = examples(10, seed)
        answers.append(asked(node, MECHANISM, declared=24, metrics=make_metrics_mechanism(MECHANISM, 0.01)))
    assert answers[0].evaluation != answers[1].evaluation
    assert answers[0].blob == answers[1].blob


CHECKS = {
    ledger_reset: check_what_was_spent_outlives_the_node,
    residual_before_noise: check_what_is_kept_back_was_noised_before,
    paced_by_held_out_data: check_held_out_data_decide_nothing_that_leaves,
}


@pytest.mark.parametrize("check", CHECKS.values())
def test_the_promise_holds(check, tmp_path, monkeypatch):
    check(tmp_path, monkeypatch)


@pytest.mark.parametrize(("fault", "check"), CHECKS.items())
def test_a_seeded_fault_is_caught(fault, check, tmp_path, monkeypatch):
    fault(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, LogError)):  # the last: the site itself notices
        check(tmp_path, monkeypatch)


# --- LoRA


@pytest.mark.parametrize("kind", ["language-model", "classifier"])
def test_no_embedding_gets_an_adapter(kind):
    model, _ = glm(kind, "lora")
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    assert embeddings
    assert not any(parameter.requires_grad for module in embeddings for parameter in module.parameters())
    assert not any("embed" in name for name, _ in federated_parameters(model))


@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_adapters_trained_privately_are_saved_under_their_names(mode, tmp_path):
    model, task = glm("language-model", "lora", vocabulary=16)
    names, kind = list(model.state_dict()), type(model)
    train(model=model, task=task, mode=mode)
    assert (list(model.state_dict()), type(model)) == (names, kind)
    merge_adapters(model).save_pretrained(tmp_path)
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
        torch.testing.assert_close(loaded, model.eval()(tokens).logits, atol=1e-4, rtol=1e-4)


# --- what strangers send is never unpickled


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["update", "plan", "checkpoint", "state"])
def test_a_pickle_is_not_read(name, tmp_path):
    went_off = tmp_path / "went off"
    bomb = pickle.dumps(Bomb(went_off))
    file = tmp_path / "file"
    torch.save(Bomb(went_off), file)
    for blob in (bomb, file.read_bytes()):
        if name == "update":
            with pytest.raises(CodecError):
                decode(blob, size=SIZE)
        elif name == "plan":
            with pytest.raises(PrivacyError):
                SignedPlan.from_bytes(blob)
        elif name == "checkpoint":
            (tmp_path / "round-0000001.safetensors").write_bytes(blob)
            with pytest.raises(CheckpointError):
                load_latest(tmp_path)
        else:
            (tmp_path / "state.json").write_bytes(blob)
            with pytest.raises(RuntimeError, match="state"):
                NodeState.load(tmp_path, SIZE)
    assert not went_off.exists()
    pickle.loads(bomb)  # noqa: S301 - our own bytes
    assert went_off.exists()


# --- what is banned is nowhere in the product

BANNED = {
    "GaussianAccountant": "Opacus' gdp accountant reports less than is spent, and forgets when its state is loaded",
    "gdp": "the same by its name",
    "PrivacyEngine": "a new one each round forgets what the rounds before have spent",
    "make_private": "the same",
    "make_private_with_epsilon": "the same, and it only warns where a budget is there already",
    "DPDataLoader": "it samples records, not units, by a generator that may be seeded",
    "rand_on_empty": "it puts a record of its own into an empty sample: twice the sensitivity",
    "secure_mode": "it needs torchcsprng, which has no wheel",
    "torchcsprng": "the same",
    "pickle": "it runs what it reads",
    "cloudpickle": "the same",
    "load": "torch.load is pickle",
    "allow_pickle": "numpy.load is pickle then",
}
EVERYWHERE_ELSE = {"GradScaler": "it scales the norms that are clipped, and leaves out steps without noise"}


def found_in(tree: ast.AST) -> Iterator[str]:
    """Names that code imports, calls and passes, and whole texts, by which accountants are chosen."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            if part.attr != "load" or (isinstance(part.value, ast.Name) and part.value.id == "torch"):
                yield part.attr
        elif isinstance(part, ast.keyword | ast.alias):
            yield from (part.arg or "").split(".") if isinstance(part, ast.keyword) else part.name.split(".")
        elif isinstance(part, ast.ImportFrom):
            yield from (part.module or "").split(".")
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def test_what_is_banned_is_not_used():
    sources = [path for path in SOURCES if root_of(path) != "compression"]
    assert len(sources) > 250
    for path in sources:
        names = set(found_in(ast.parse(path.read_text())))
        assert not names & BANNED.keys(), path
        if root_of(path) == "privacy" or path.name == "private_training.py":
            assert not names & EVERYWHERE_ELSE.keys(), path


@pytest.mark.parametrize(
    "code",
    [
        "from opacus.accountants import GaussianAccountant",
        "import opacus; opacus.PrivacyEngine()",
        "PrivacyEngine(accountant='gdp')",
        "create_accountant('gdp')",
        "engine.make_private(module=m)",
        "DPDataLoader.from_data_loader(x, rand_on_empty=True)",
        "import pickle as p",
        "from pickle import loads",
        "torch.load(path)",
    ],
)
def test_a_banned_name_would_be_found(code):
    assert set(found_in(ast.parse(code))) & BANNED.keys()
