"""Released updates and the tokens that a site holds: they reveal nearly all without noise, hardly anything with it.

Every update that left a site of a real federation is scored, as its bytes crossed the grid. Six sites hold 120 records
each, and of 256 tokens 95, drawn anew for each site. For norms without information, the AUC of an update has a standard
deviation of sqrt(257 / (12 * 95 * 161)) = 0.0374, and the mean of 24 of them 0.0076. What 120 records have in common
does show, by 0.005 to 0.01: privacy protects a record, not a site. So a mean of 0.55 is 5 deviations away, and 0.72 of
one update too.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from custodies import SERVER, custody
from fake_grid import FakeGrid, Watcher
from flwr.app import Context, RecordDict
from plans import make_spec

from fedglm.audit.empirical.leakage import measure_token_leak
from fedglm.autoglm.federation import load_federation
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.client import node as node_module
from fedglm.client import private_training
from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.coding import code_update
from fedglm.client.gate import OutboundGate
from fedglm.client.node import Node
from fedglm.compression.codec import decode
from fedglm.compression.settings import DownlinkSettings, UpdateSettings
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.dp.dp_sgd import compute_noised_mean
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import RECORD, UPDATE
from fedglm.server.coordinator import Coordinator
from fedglm.server.run_setup import Plan
from fedglm.server.settings import FederationSettings, ServerOptimizerSettings

pytestmark = pytest.mark.usefixtures("unsynced")

SITES, RECORDS, STEPS, ROUNDS, DELTA = 6, 120, 4, 4, 1e-4
MECHANISM = Mechanism(
    sampling_rate=0.2, steps=STEPS, clipping_norm=1.0, noise_multiplier=0.77, unit="record", records_per_unit=1
)
WAYS = [
    pytest.param("sgd", {"codec": "dense-fp32"}, id="sgd-dense", marks=pytest.mark.slow),
    pytest.param("sgd", {"codec": "topk-sign", "density": 0.1}, id="sgd-sparse"),
    pytest.param("adamw", {"codec": "topk-sign", "density": 0.15}, id="adamw-sparse", marks=pytest.mark.slow),
]
RATES = {"sgd": 0.1, "adamw": 2e-3}


class Sites:
    """Texts of each site's own half of the bytes, whose class is in how many characters have one byte."""

    def __init__(self, folder):
        rng, file = np.random.default_rng(0), folder / "texts.jsonl"
        file.write_text("\n".join(row for site in range(SITES) for row in self._rows(f"site-{site}", rng)))
        settings = DataSettings(
            source=str(file), text_field="text", label_field="label", site_field="site", length=26, held_out=0.05
        )
        data = load_federation(settings, seed=0)  # a hash decides what is held out, and so how many
        self.data = replace(
            data, sites=tuple(replace(one, train=one.train.select(torch.arange(RECORDS))) for one in data.sites)
        )

    def make_model(self):
        """Make the model as in a process of its own: nothing of one federation's training is left for the next."""
        model = build_model(ModelSettings(preset="glm-0.1m"), self.data.task, seed=0)
        return FederatedModel(model, self.data.task, DownlinkSettings(codec="dense-fp16"))

    @staticmethod
    def _rows(site, rng):
        short = [chr(byte) for byte in rng.permutation(np.arange(0x21, 0x7F))[:47]]
        firsts, seconds = rng.permutation(np.arange(3, 32))[:15], rng.permutation(64)[:32]
        for number in range(RECORDS + 30):
            share = 0.8 if number % 2 else 0.4
            text = [
                str(rng.choice(short)) if rng.random() < share else chr(rng.choice(firsts) << 6 | rng.choice(seconds))
                for _ in range(12)
            ]
            yield json.dumps({"text": "".join(text), "label": "ab"[number % 2], "site": site})

    def held(self, number):
        """Which tokens the site trains on, (256,) bool."""
        train = self.data.sites[number].train
        tokens = [row[:length] for row, length in zip(train.input_ids.numpy(), train.lengths.numpy(), strict=True)]
        return np.isin(np.arange(256), np.concatenate(tokens))


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    return Sites(tmp_path_factory.mktemp("texts"))


def federate(sites, folder, optimizer, update, *, mechanism=MECHANISM, rounds=ROUNDS):
    """AUC of every update that crossed the grid, (rounds * sites,)."""
    model, coding = sites.make_model(), UpdateSettings(**update)
    training = LocalTrainingSettings(
        local_steps=STEPS,
        batch_size=RECORDS // STEPS,  # a round without noise passes over all records: all held tokens are trained on
        optimizer=optimizer,
        momentum=0.0,
        learning_rate=RATES[optimizer],
        precision="fp32",
        device="cpu",
    )
    policy = {"declare_units": RECORDS, "delta": DELTA, "noise_multiplier_at_least": 0.5} if mechanism else {}

    def answering(site):
        home = folder / site.name
        node = Node(
            site.name,
            model,
            train=site.train,
            held_out=site.held_out,
            training=training,
            update=coding,
            folder=home,
            seed=7,
            declared=RECORDS,
        )
        gate = OutboundGate(custody(home / "custody", private=mechanism is not None, **policy), home)
        app = build_client_app(lambda _: NodeContext(gate, lambda: node))
        return lambda message: app(message, Context(1, 1, {}, RecordDict(), {}))

    grid = FakeGrid({number: answering(site) for number, site in enumerate(sites.data.sites, start=1)})
    plan = Plan(
        federation=FederationSettings(rounds=rounds, round_timeout_s=60.0),
        optimizer=ServerOptimizerSettings(),
        spec=make_spec(
            rounds=rounds,
            turns=rounds,
            local_steps=STEPS,
            mechanism=mechanism,
            noise_at_most=mechanism and mechanism.noise_multiplier,
            codec=coding.codec,
            density=coding.effective_density if coding.is_sparse else None,
        ),
        key=SERVER,
        downlink=DownlinkSettings(codec="dense-fp16"),
        learning_rate=RATES[optimizer],
        layout=model.layout,
        initial=model.initial,
        evaluate=None,
        metric="accuracy",
        checkpoints=folder / "checkpoint",
    )
    Coordinator(plan, grid, listener=Watcher()).run()
    (name,) = (name for name in model.layout.names if "embed_tokens" in name)
    scores = []
    for reply in grid.received:
        fields = reply.content.config_records[RECORD]
        if UPDATE in fields:
            vector = decode(fields[UPDATE], size=model.layout.size).to_dense()
            rows = vector[model.layout.slices()[name]].reshape(256, -1)
            scores.append(measure_token_leak(rows, sites.held(reply.metadata.src_node_id - 1)).auc)
    assert len(scores) == rounds * SITES, "each site must answer in each round"
    return np.array(scores)


def check_hidden(scores):
    """Check both ways: norms that are smaller where a token is held would reveal it just as well."""
    assert abs(scores.mean() - 0.5) <= 0.05, f"mean AUC {scores.mean():.3f}"
    assert (np.abs(scores - 0.5) < 0.22).all(), f"AUC from {scores.min():.3f} to {scores.max():.3f}"


def test_the_sites_are_what_the_bounds_are_for(sites):
    held = np.array([sites.held(number) for number in range(SITES)])
    assert (held.sum(1) == 95).all()
    assert len(np.unique(held, axis=0)) == SITES
    assert [len(site.train) for site in sites.data.sites] == [RECORDS] * SITES
    event = Event(MECHANISM.noise_multiplier, MECHANISM.sampling_rate, STEPS * ROUNDS)
    assert 7.5 < compute_epsilon([event], DELTA).epsilon < 8.1


@pytest.mark.parametrize(("optimizer", "update"), WAYS)
def test_noise_hides_the_tokens_that_an_update_without_it_names(sites, tmp_path, optimizer, update):
    unnoised = federate(sites, tmp_path / "bare", optimizer, update, mechanism=None, rounds=1)
    assert unnoised.min() >= 0.9
    check_hidden(federate(sites, tmp_path / "noised", optimizer, update))


# --- faults that the check must see


def noise_times(factor):
    """Each step's noise, times `factor`."""

    def put(patch):
        def quiet(total, mechanism, *others):
            return compute_noised_mean(
                total, replace(mechanism, noise_multiplier=mechanism.noise_multiplier * factor), *others
            )

        patch.setattr(private_training, "compute_noised_mean", quiet)

    return put


def residual_before_noise(patch):
    """The clean update is compensated and its largest values chosen; the proper amount of noise is added on those."""
    noise_times(1e-9)(patch)

    def late(state, delta, base, server_round, settings, layout, *, rate, **options):
        pending = code_update(state, delta, base, server_round, settings, layout, rate=rate, **options)
        sent = decode(pending.blob, size=layout.size).to_dense()
        std = rate * MECHANISM.noise_std * STEPS**0.5 / (MECHANISM.sampling_rate * RECORDS)
        noised = np.where(sent != 0, sent + GaussianNoise().normal(std, layout.size), np.float32(0))
        return replace(pending, blob=settings.make_codec(layout).encode(noised))

    patch.setattr(node_module, "code_update", late)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(noise_times(1e-9), id="no noise"),
        pytest.param(noise_times(0.1), id="a tenth of the noise", marks=pytest.mark.slow),
        pytest.param(residual_before_noise, id="residual before noise"),
    ],
)
def test_the_check_sees_a_fault(sites, tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    scores = federate(sites, tmp_path, "sgd", {"codec": "topk-sign", "density": 0.1}, rounds=1)
    with pytest.raises(AssertionError, match="mean AUC"):
        check_hidden(scores)


# --- the score itself


def test_the_score_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(1)
    for _ in range(20):
        norms, held = rng.integers(0, 4, 30), rng.random(30) < 0.4
        rows = norms[:, None] * np.array([[0.6, 0.0, 0.8]], np.float32)
        pairs = np.subtract.outer(norms[held], norms[~held])
        leak = measure_token_leak(rows, held)
        assert leak.auc == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))
        # However ties fall: the mean of many random orders.
        orders = [np.lexsort((rng.random(30), -norms))[: held.sum()] for _ in range(500)]
        assert leak.precision == pytest.approx(np.mean([held[order].mean() for order in orders]), abs=0.04)
        assert leak.chance == held.mean()


def test_an_update_that_names_all_and_one_that_names_none():
    held = np.array([True, False, True, False])
    named = measure_token_leak(held[:, None] * np.full((1, 5), 1e-30, np.float32), held)
    assert (named.auc, named.precision) == (1.0, 1.0)
    silent = measure_token_leak(np.zeros((4, 5), np.float32), held)
    assert (silent.auc, silent.precision, silent.chance) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("rows", "held", "reason"),
    [
        (np.zeros((4, 2)), np.zeros(4, bool), "none of the tokens are held"),
        (np.zeros((4, 2)), np.ones(4, bool), "all of the tokens are held"),
        (np.zeros((4, 2)), np.array([True, False]), "takes rows"),
        (np.zeros(4), np.array([True, False, True, False]), "takes rows"),
        (np.zeros((4, 2)), np.array([1, 0, 1, 0]), "takes rows"),
        (np.full((2, 2), np.nan), np.array([True, False]), "NaN"),
    ],
)
def test_what_cannot_be_scored_is_refused(rows, held, reason):
    with pytest.raises(PrivacyError, match=reason):
        measure_token_leak(rows, held)
