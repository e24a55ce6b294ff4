"""Noise of the server that protects whole nodes: what one node can change, what is added, and what is counted."""

import hashlib
import random

import numpy as np
import pytest
import torch
from command_line import rows_of, write_tiny
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from fake_grid import SIZE, errs, federate, real_nodes, spoiled
from flwr.app import ConfigRecord
from scipy.stats import kstest
from tiny_federation import TASK, tiny_model

from fedglm.compression.codec import make_codec
from fedglm.compression.settings import DownlinkSettings
from fedglm.compression.updates import DenseUpdate, SparseUpdate
from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import RECORD, UPDATE
from fedglm.server.aggregation.central_dp import ClientPrivacy, PrivateMean, plan_client_privacy
from fedglm.server.settings import ClientPrivacySettings, FederationSettings

pytestmark = pytest.mark.usefixtures("unsynced")

MANY = 1_000_000
CLIP = 2.5


def mechanism(noise_multiplier=1.0, *, clip=CLIP, rate=1.0):
    about = {"sampling_rate": rate, "clipping_norm": clip, "noise_multiplier": noise_multiplier}
    return Mechanism(**about, steps=1, unit="node", records_per_unit=1)


def repeated():
    """Noise that repeats itself: what was drawn can be drawn again."""
    numbers = iter(range(10**6))
    return GaussianNoise(lambda size: hashlib.sha256(b"%d" % next(numbers)).digest()[:size])


def mean_of(updates, size, *, noise_multiplier=1.0, nodes=10, rate=1.0, noise=None, clip=CLIP):
    """The noised mean, and by what it was divided."""
    found = PrivateMean(
        size, 20, mechanism(noise_multiplier, rate=rate, clip=clip), nodes=nodes, noise=noise or GaussianNoise()
    )
    for update in updates:
        found.add(update, 1.0)
    return found.mean().astype(np.float64) * rate * nodes


def dense(*values):
    return DenseUpdate(np.array(values, np.float32))


# --- clipping


def updates_of(size, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(np.float32)
    spike = np.zeros(size, np.float32)
    spike[3] = -1
    return [
        DenseUpdate(values * np.float32(1e6)),
        DenseUpdate(np.full(size, 3e38, np.float32)),
        DenseUpdate(spike * np.float32(1e30)),
        DenseUpdate(values * np.float32(CLIP / np.linalg.norm(values))),
        DenseUpdate(np.full(size, CLIP / np.sqrt(size), np.float32)),
        SparseUpdate(size, np.array([1, 5, 700], np.int64), np.array([1e9, -1e9, 1], np.float32)),
    ]


@pytest.mark.parametrize("huge", range(6))
def test_one_update_moves_the_sum_by_at_most_the_clipping_norm(huge):
    size = 1000
    # The noise is small, so that the sum is seen; the same each time, so that only the update makes a difference.
    drawn = {"noise_multiplier": 1e-4, "noise": repeated()}
    without = mean_of([dense(*np.ones(size) / 99)], size, **drawn)
    drawn["noise"] = repeated()
    with_it = mean_of([dense(*np.ones(size) / 99), updates_of(size, 1)[huge]], size, **drawn)
    moved = np.linalg.norm(with_it - without)
    assert 0.999 * CLIP < moved <= CLIP * (1 + 1e-5)  # two roundings of the sum, for a grid of std / 4096


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e3])
def test_in_the_fixed_point_sum_itself_no_update_exceeds_the_clipping_norm(clip):
    """Rounding to the fixed point is within the bound, not beyond it."""
    size = 100_000
    for update in updates_of(size, 2):
        found = PrivateMean(size, 20, mechanism(clip=clip), nodes=1, noise=GaussianNoise())
        found.add(update, 1.0)
        norm = np.linalg.norm(found._sum.astype(np.float64) * 2.0**-40)
        assert min(clip, update.norm()) * (1 - 1e-6) < norm <= clip


def test_short_updates_are_left_as_they_are_and_long_ones_keep_their_direction():
    short, long = dense(0.5, -1.0, 0.25), dense(30.0, 40.0, 0.0)
    found = mean_of([short], 3, noise_multiplier=1e-5)
    np.testing.assert_allclose(found, short.values, atol=2e-4)
    found = mean_of([long], 3, noise_multiplier=1e-5)
    np.testing.assert_allclose(found, [0.6 * CLIP, 0.8 * CLIP, 0], atol=2e-4)


def test_the_order_of_updates_changes_no_bit():
    updates = updates_of(1000, 3)
    found = {
        mean_of(order, 1000, noise=repeated()).tobytes()
        for order in (updates, updates[::-1], updates[3:] + updates[:3])
    }
    assert len(found) == 1


def test_the_divisor_is_public():
    """Two updates or none: the sum is divided by the expected number of nodes."""
    one = dense(1.0, 0.0)
    found = PrivateMean(2, 500, mechanism(1e-5, rate=0.1), nodes=200, noise=GaussianNoise())
    for _ in range(2):
        found.add(one, 1.0)
    np.testing.assert_allclose(found.mean(), [2 / 20, 0], atol=1e-4)


def test_nodes_count_alike_or_not_at_all():
    found = PrivateMean(2, 5, mechanism(), nodes=5, noise=GaussianNoise())
    for weight in (0.5, 2.0, float("nan")):
        with pytest.raises(PrivacyError, match="weight 1"):
            found.add(dense(1.0, 1.0), weight)


# --- noise


def looks_normal(values, std):
    return kstest(values / std, "norm", method="asymp").pvalue > 1e-6


PLANS = [(6.0, 1.0, 10, 200), pytest.param(2.0, 0.1, 50, 500, marks=pytest.mark.slow)]
SCALES = [(1e-3, 0.1), *(pytest.param(*scale, marks=pytest.mark.slow) for scale in [(1.0, 1.0), (100.0, 20.0)])]


@pytest.mark.parametrize(("clip", "noise_multiplier"), SCALES)
def test_the_sum_has_noise_of_sigma_clipping_norms(clip, noise_multiplier):
    update = DenseUpdate(np.full(MANY, 1.0, np.float32))
    for updates in ([], [update]):
        found = mean_of(updates, MANY, noise_multiplier=noise_multiplier, clip=clip, rate=0.3)
        found -= len(updates) * clip / np.sqrt(MANY)
        found.sort()  # once, not in each test: the order of coordinates is none of theirs
        std = noise_multiplier * clip
        assert looks_normal(found, std)
        for wrong in (0.5, 0.98, 1.02, 2.0):
            assert not looks_normal(found, wrong * std)


def test_two_means_share_no_noise_and_one_is_taken_once():
    first, second = mean_of([], MANY), mean_of([], MANY)
    assert looks_normal(first - second, np.sqrt(2) * CLIP)
    found = PrivateMean(3, 5, mechanism(), nodes=5, noise=GaussianNoise())
    found.mean()
    with pytest.raises(PrivacyError, match="taken once"):
        found.mean()
    with pytest.raises(PrivacyError, match="until it is taken"):
        found.add(dense(1.0, 1.0, 1.0), 1.0)


def test_the_low_bits_of_the_sum_do_not_leave():
    values = mean_of([dense(*np.linspace(-1e-3, 1e-3, 1000))], 1000, nodes=1)
    grid = 2.0 ** (np.floor(np.log2(CLIP)) - 12)
    assert (values % grid == 0).all()


def test_no_seed_reaches_sample_or_noise():
    def after_seeding():
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        private = ClientPrivacy(mechanism(rate=0.5), nodes=200, epsilon=50.0, delta=1e-3)
        return private.sample(list(range(200))), private.begin([], 500, terms=200).mean()

    (one, noise), (other, other_noise) = after_seeding(), after_seeding()
    assert one != other
    assert np.mean(noise == other_noise) < 0.02


def test_each_node_is_drawn_on_its_own():
    private = ClientPrivacy(mechanism(5.0, rate=0.1), nodes=1000, epsilon=50.0, delta=1e-4)
    sizes = [len(private.sample(range(1000))) for _ in range(400)]
    assert np.mean(sizes) == pytest.approx(100, abs=6 * np.sqrt(90 / 400))
    assert np.var(sizes) == pytest.approx(90, rel=0.45)  # that of a binomial; a fixed size has none


# --- accounting


def peer(event, delta):
    accountant = PLDAccountant()
    accountant.compose(PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_multiplier)), event.steps)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("epsilon", "fraction", "rounds", "nodes"), PLANS)
def test_all_rounds_together_spend_the_budget_and_no_more(epsilon, fraction, rounds, nodes):
    federation = FederationSettings(rounds=rounds, fraction=fraction)
    private = plan_client_privacy(ClientPrivacySettings(epsilon=epsilon), federation, nodes)
    assert private.mechanism.sampling_rate == fraction
    assert (private.nodes, private.delta) == (nodes, {500: 2e-4, 200: 5e-4}[nodes])
    rows = [{"client_mechanism": private.mechanism.to_fields()}] * rounds
    spends = []
    for done in (1, rounds // 2, rounds):
        expected = peer(Event(private.mechanism.noise_multiplier, fraction, done), private.delta)
        spends.append(private.make_row_fields(rows[: done - 1])["client_epsilon"])
        assert expected <= spends[-1] <= expected + 0.02
    assert spends == sorted(spends)
    assert epsilon - 0.1 < spends[-1] <= epsilon
    with pytest.raises(PrivacyError, match=r"would exceed client_privacy\.epsilon"):
        private.begin(rows, 3, terms=nodes)


@pytest.mark.parametrize(("nodes", "delta"), [(1, 0.1), (3, 0.03), (10, 0.01), (11, 0.009), (400, 2e-4), (1000, 1e-4)])
def test_delta_follows_the_number_of_nodes(nodes, delta):
    assert ClientPrivacySettings().compute_delta(nodes) == delta <= 0.1 / nodes + 1e-12
    assert ClientPrivacySettings(delta=1e-6).compute_delta(nodes) == 1e-6


def test_what_cannot_be_promised_is_refused():
    on = ClientPrivacySettings(epsilon=5.0)
    assert plan_client_privacy(ClientPrivacySettings(), FederationSettings(weighting="declared"), 5) is None
    with pytest.raises(PrivacyError, match=r"set federation\.weighting to 'uniform'"):
        plan_client_privacy(on, FederationSettings(weighting="declared"), 5)
    for wrong in ({"epsilon": 0.01}, {"epsilon": 51.0}, {"clipping_norm": 0.0}, {"delta": 0.5}, {"epsilonn": 1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ClientPrivacySettings(**wrong)
    with pytest.raises(PrivacyError, match="clipping_norm must be nearer to 1"):
        plan_client_privacy(ClientPrivacySettings(epsilon=5.0, clipping_norm=1e3), FederationSettings(), 100_000)
    with pytest.raises(PrivacyError, match="do not fit"):
        PrivateMean(3, 10**6, mechanism(), nodes=5, noise=GaussianNoise())


# --- a federation


def private(*, noise_multiplier=0.5, rate=1.0, epsilon=50.0, clip=0.5, noise=None):
    made = mechanism(noise_multiplier, rate=rate, clip=clip)
    return ClientPrivacy(made, nodes=3, epsilon=epsilon, delta=1e-2, noise=noise)


def test_a_private_run_counts_each_round_whatever_comes_back(tmp_path):
    nodes = real_nodes(tmp_path)
    nodes[9] = spoiled(nodes[9], errs, rounds=(2,))
    coordinator, _, _ = federate(tmp_path, nodes, client_privacy=private())
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 2, 3]
    expected = [compute_epsilon([Event(0.5, 1.0, done)], 1e-2).epsilon for done in (1, 2, 3)]
    assert [row["client_epsilon"] for row in coordinator.rows] == expected


def test_the_seed_does_not_repeat_a_private_run(tmp_path):
    shas = {federate(tmp_path / name, client_privacy=private())[0].model_sha256 for name in "xy"}
    assert len(shas) == 2


def test_rounds_without_anybody_are_rounds(tmp_path):
    coordinator, _, _ = federate(tmp_path, client_privacy=private(rate=0.02, noise=repeated()))
    assert [row["nodes_sampled"] for row in coordinator.rows] == [0, 0, 0]
    spends = [row["client_epsilon"] for row in coordinator.rows]
    assert 0 < spends[0] < spends[1] < spends[2]
    assert np.abs(coordinator.vector).max() > 5  # noise alone, and few nodes expected


def test_rounds_in_which_every_reply_is_bad_go_on(tmp_path):
    nodes = {node: spoiled(answer, errs, rounds=(2,)) for node, answer in real_nodes(tmp_path).items()}
    coordinator, _, _ = federate(tmp_path, nodes, client_privacy=private())
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 0, 3]


def boastful(scale):
    """Sends an update of norm `scale` in round 1."""

    def spoil(reply, _message):
        fields = dict(reply.content[RECORD])
        update = np.zeros(SIZE, np.float32)
        update[0] = scale
        fields[UPDATE] = make_codec("topk-fp16", density=0.1).encode(update)
        reply.content[RECORD] = ConfigRecord(fields)
        return reply

    return spoil


def test_a_node_that_sends_a_huge_update_moves_the_model_by_its_clipped_share(tmp_path, monkeypatch):
    monkeypatch.setattr(GaussianNoise, "normal", lambda _, __, count: np.zeros(count, np.float32))
    downlink = DownlinkSettings(codec="dense-fp32", grid="fp32")
    vectors = []
    for name, scale in (("x", 0.0), ("y", 9000.0)):
        nodes = real_nodes(tmp_path / name, model=FederatedModel(tiny_model(), TASK, downlink))
        nodes[9] = spoiled(nodes[9], boastful(scale), rounds=(1,))
        coordinator, _, _ = federate(
            tmp_path / name,
            nodes,
            rounds=1,
            server_optimizer="plain",
            downlink=downlink,
            client_privacy=private(),
        )
        vectors.append(coordinator.vector)
    assert np.linalg.norm(vectors[1] - vectors[0]) == pytest.approx(0.5 / 3, rel=1e-3)


class Killed(Exception):
    pass


def killed_at(*where):
    def hook(*event):
        if event[: len(where)] == where:
            raise Killed

    return hook


@pytest.mark.parametrize("where", [("reply", 3), ("done", 2)], ids=str)
def test_a_resumed_run_goes_on_counting(tmp_path, where):
    with pytest.raises(Killed):
        federate(tmp_path, client_privacy=private(), rounds=4, hook=killed_at(*where))
    coordinator, _, watcher = federate(tmp_path, client_privacy=private(), rounds=4, resume=True)
    assert watcher.events[0] == ("resumed", 2)
    expected = [compute_epsilon([Event(0.5, 1.0, done)], 1e-2).epsilon for done in (1, 2, 3, 4)]
    assert [row["client_epsilon"] for row in coordinator.rows] == expected


def test_a_budget_that_ends_in_mid_run_stops_it_before_anything_is_sent(tmp_path):
    two = compute_epsilon([Event(0.5, 1.0, 2)], 1e-2).epsilon
    with pytest.raises(PrivacyError, match="round 3 would exceed"):
        federate(tmp_path, client_privacy=private(epsilon=two + 1e-6))
    with pytest.raises(PrivacyError, match="round 3 would exceed"):
        federate(tmp_path, client_privacy=private(epsilon=two + 1e-6), resume=True)


def test_a_round_that_may_have_left_is_not_done_again(tmp_path):
    federate(tmp_path, client_privacy=private(), rounds=2)
    newest = max((tmp_path / "checkpoint").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(PrivacyError, match="the checkpoint of round 2 is damaged"):
        federate(tmp_path, client_privacy=private(), rounds=3, resume=True)


def test_rounds_done_in_another_way_are_not_built_upon(tmp_path):
    federate(tmp_path / "x", client_privacy=private(), rounds=2)
    with pytest.raises(PrivacyError, match="another client-level noise"):
        federate(tmp_path / "x", client_privacy=private(noise_multiplier=0.6), rounds=3, resume=True)
    federate(tmp_path / "y", rounds=2)
    with pytest.raises(PrivacyError, match="done without client-level noise"):
        federate(tmp_path / "y", client_privacy=private(), rounds=3, resume=True)


# --- from outside


@pytest.fixture(scope="module")
def run(fedglm, tmp_path_factory):
    home = tmp_path_factory.mktemp("client")
    toml, folder = write_tiny(home), home / "run"
    sets = ("--set", "client_privacy.epsilon=8", "--set", "client_privacy.clipping_norm=0.5")
    return toml, folder, fedglm("simulate", toml, "--out", folder, *sets, "--json").json


def test_a_scenario_with_private_nodes(run):
    _, folder, summary = run
    rows = rows_of(folder)
    assert summary["client_delta"] == 0.05
    assert summary["epsilon"] is None
    assert [row["client_epsilon"] for row in rows] == sorted(row["client_epsilon"] for row in rows)
    assert 7.9 < summary["client_epsilon"] == rows[-1]["client_epsilon"] <= 8
    assert "Differential privacy of whole nodes" in summary["privacy"]
    assert summary["privacy"].startswith("No privacy guarantee against the server")


def test_a_scenario_without_says_nothing_of_it(finished):
    assert (finished.summary["client_epsilon"], finished.summary["client_delta"]) == (None, None)
    assert {row["client_epsilon"] for row in finished.rows} == {None}
    assert "whole nodes" not in finished.summary["privacy"]


@pytest.mark.slow
def test_records_and_nodes_can_both_be_protected(fedglm, run, tmp_path):
    options = ("--epsilon", 6, "--set", "client_privacy.epsilon=8", "--set", "federation.fraction=0.5")
    summary = fedglm("simulate", run[0], "--out", tmp_path / "both", *options, "--json").json
    assert summary["client_epsilon"] <= 8
    # A site may be drawn in each round, so its noise is made for all of them; nobody is refused.
    assert summary["epsilon"] is None or summary["epsilon"] <= 6
    assert all(row["rejections"] == {} for row in rows_of(tmp_path / "both"))
    assert summary["privacy"].startswith("Differential privacy: ")
    assert "Differential privacy of whole nodes" in summary["privacy"]


def test_weights_and_whole_nodes_exclude_each_other(fedglm, run, tmp_path):
    sets = ("--set", "client_privacy.epsilon=8", "--set", "federation.weighting=declared")
    assert "set federation.weighting to 'uniform'" in fedglm("simulate", run[0], "--out", tmp_path / "x", *sets).line()
