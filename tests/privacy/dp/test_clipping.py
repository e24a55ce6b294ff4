"""Clipped sums of both clippers against a loop that takes one record at a time, by autograd alone."""

import itertools

import pytest
import torch
from clipping_reference import (
    ALONE,
    CLIPPERS,
    SHARED,
    add,
    batch,
    bf16_gap,
    clip,
    clipped_sum,
    gap,
    glm,
    naive_units,
    remains,
    some,
    trained,
)
from hypothesis import given
from hypothesis import strategies as st
from tiny_federation import TASK, tiny_model
from torch import nn

from fedglm.privacy.dp import ghost_norms
from fedglm.privacy.dp.clipping import compute_squared_norms
from fedglm.privacy.dp.ghost_clipping import GhostClipper
from fedglm.privacy.dp.ghost_norms import (
    Use,
    compute_gram_norms,
    compute_weight_norms,
    is_transpose_cheaper,
    write_gradients,
)


@pytest.fixture(params=CLIPPERS)
def clipper_of(request):
    return CLIPPERS[request.param]


# --- the clipped sum


def choose_ways():
    """All ways to clip; those not marked slow meet each pair of settings, and for `ghost`, the default, each three."""
    for clipper, *way in itertools.product(
        CLIPPERS, ("language-model", "classifier"), ("full", "lora"), ("fp32", "bf16"), ("records", "units")
    ):
        kind, adapter, precision, owners = (setting in ("classifier", "lora", "bf16", "units") for setting in way)
        is_even = (kind + adapter + precision + owners) % 2 == 0
        is_kept = is_even and (clipper == "ghost" or (kind == adapter) == (clipper == "hooks"))
        yield pytest.param(
            clipper, *way[:2], way[2] == "bf16", SHARED if owners else ALONE,
            id="-".join((clipper, *way)), marks=() if is_kept else pytest.mark.slow,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("clipper_of", "kind", "adapter", "bf16", "owners"), list(choose_ways()), indirect=["clipper_of"]
)
def test_clipped_sums_are_those_of_a_loop_over_records(clipper_of, kind, adapter, bf16, owners):
    model, task = glm(kind, adapter)
    data = batch()
    units = naive_units(model, task, data, owners, bf16)
    norms = units.norm(dim=1)
    norm = float(norms.min() + norms.max()) / 2  # some are clipped, some are not
    clipper = clipper_of(model, trained(model), norm)
    result = clipped_sum(clipper, model, task, data, owners, bf16)
    limit, wanted = bf16_gap(adapter) if bf16 else 1e-5, clip(units, norm)
    assert result.dtype == torch.float32
    assert gap(result, wanted) <= limit
    assert min(gap(wanted - clip(unit[None], norm), wanted) for unit in units) > 2 * limit  # one of them left out
    assert 0 < clipper.clipped < len(units)
    with clipper:
        for unit in range(len(units)):
            clipper.begin()
            mine = owners == unit
            add(clipper, model, task, some(data, mine), torch.zeros(int(mine.sum()), dtype=torch.int64), bf16)
            assert float(clipper.total.double().norm()) <= norm * (1 + 1e-6)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_contribution_stays_below_the_norm_where_gradients_are_long_and_large(clipper_of, bf16):
    model, task = glm("language-model")
    data = batch(lengths=torch.tensor([60]))
    clipper = clipper_of(model, trained(model), 1e-3)
    result = clipped_sum(clipper, model, task, data, torch.tensor([0]), bf16)
    assert float(result.double().norm()) == pytest.approx(1e-3, rel=1e-6)


def test_norms_and_sums_are_in_float32_even_where_autocast_is_still_on(clipper_of):
    model, task = glm("language-model", "lora")
    clipper = clipper_of(model, trained(model), 1e-3)
    wanted = clipped_sum(clipper, model, task, batch(), ALONE, bf16=True)
    with clipper, torch.autocast("cpu", torch.bfloat16):
        clipper.begin()
        clipper.add(task.sequence_losses(model, batch()), ALONE)
    assert gap(clipper.total, wanted) <= 1e-6


def test_kept_gradients_stay_within_their_memory():
    model, task = glm("language-model")
    clipper = GhostClipper(model, trained(model), 0.5, max_buffer_bytes=100_000)
    for records in (2, 6, 4):  # samples vary in size, and what was kept for one serves the next
        data, owners = some(batch(), slice(0, records)), ALONE[:records]
        result = clipped_sum(clipper, model, task, data, owners)
        assert gap(result, clip(naive_units(model, task, data, owners), 0.5)) <= 1e-5
        assert 0 < sum(buffer.nbytes for buffer in clipper._buffers.values()) <= 100_000


def test_below_the_norm_nothing_is_changed(clipper_of):
    model, task = glm("language-model")
    data = batch()
    clipper = clipper_of(model, trained(model), 1e9)
    assert gap(clipped_sum(clipper, model, task, data, SHARED), naive_units(model, task, data, SHARED).sum(0)) <= 1e-6
    assert clipper.clipped == 0


def test_a_large_tied_vocabulary_goes_by_gram_matrices(monkeypatch):
    """The cross term of embedding and output layer, which is where a tied model differs from two weights."""
    seen = []
    exact = ghost_norms.compute_gram_norms
    monkeypatch.setattr(ghost_norms, "compute_gram_norms", lambda uses: (seen.append(len(uses)), exact(uses))[1])
    model, task = glm("language-model", vocabulary=3000)
    model.model.embed_tokens.weight.data *= 20  # the embedding's share of the norm is then as large as the head's
    data = batch(7, torch.tensor([3, 2, 3]))
    owners = torch.tensor([0, 0, 1])
    units = naive_units(model, task, data, owners)
    norm = float(units.norm(dim=1).min()) * 0.5
    clipper = GhostClipper(model, trained(model), norm, max_buffer_bytes=0)
    assert gap(clipped_sum(clipper, model, task, data, owners), clip(units, norm)) <= 1e-5
    assert 2 in seen


def test_batches_of_any_size_come_to_the_same_sum(clipper_of):
    model, task = glm("language-model")
    data = batch()
    clipper = clipper_of(model, trained(model), 0.5)
    whole = clipped_sum(clipper, model, task, data, SHARED)
    with clipper:
        clipper.begin()
        add(clipper, model, task, some(data, slice(0, 3)), torch.zeros(3, dtype=torch.int64))
        add(clipper, model, task, some(data, slice(3, 6)), SHARED[3:] - 1)
    assert gap(clipper.total, whole) <= 1e-6


def test_a_unit_contributes_the_same_whoever_is_in_the_batch(clipper_of):
    """A batch's mean, a norm over the batch, or noise in between would tie records to each other."""
    model, task = glm("classifier")
    data = batch()
    clipper = clipper_of(model, trained(model), 0.1)
    whole = clipped_sum(clipper, model, task, data, ALONE)
    apart = sum(clipped_sum(clipper, model, task, some(data, [i]), torch.tensor([0])) for i in range(6))
    assert gap(whole, apart) <= 1e-5


def test_the_padding_row_of_an_embedding_gets_no_gradient_as_in_torch():
    model, task = glm("classifier", pad=5)
    data = batch()
    data["input_ids"][:, 1] = 5
    units = naive_units(model, task, data, ALONE)
    result = clipped_sum(GhostClipper(model, trained(model), 0.3), model, task, data, ALONE)
    assert gap(result, clip(units, 0.3)) <= 1e-5


def test_layers_without_a_token_dimension_are_clipped_too(clipper_of):
    model = tiny_model()
    data = some(batch(16), slice(None)) | {"labels": torch.tensor([0, 1, 0, 1, 0, 1])}
    units = naive_units(model, TASK, data, SHARED)
    norm = float(units.norm(dim=1).median())
    result = clipped_sum(clipper_of(model, trained(model), norm), model, TASK, data, SHARED)
    assert gap(result, clip(units, norm)) <= 1e-5


def test_dropout_does_not_stand_in_the_way(clipper_of):
    model, task = glm("language-model", attention_dropout=0.5)
    with torch.random.fork_rng():
        total = clipped_sum(clipper_of(model, trained(model), 0.5), model, task, batch(), ALONE)
    assert 0 < float(total.norm()) <= 6 * 0.5


# --- records that are not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("owners", [ALONE, SHARED], ids=["records", "units"])
def test_a_unit_that_is_not_finite_contributes_nothing_and_leaves_the_others_alone(clipper_of, bad, owners):
    model, task = glm("language-model")
    data, clipper = batch(), clipper_of(model, trained(model), 0.5)
    others = owners != owners[1]
    renumbered = torch.unique(owners[others], return_inverse=True)[1]
    wanted = clipped_sum(clipper, model, task, some(data, others), renumbered)
    with clipper:
        clipper.begin()
        losses = task.sequence_losses(model, data)
        clipper.add(losses * torch.tensor([1, bad, 1, 1, 1, 1]), owners)
    assert torch.isfinite(clipper.total).all()
    assert gap(clipper.total, wanted) <= 1e-6


def test_a_nan_that_a_record_brings_into_the_layers_stays_with_it(clipper_of):
    """NaN in what goes into a layer, not only in what comes back: zero times NaN is NaN."""
    model = tiny_model()
    data = some(batch(16), slice(None)) | {"labels": torch.zeros(6, dtype=torch.int64)}
    data["input_ids"][0], data["input_ids"][1:] = 3, data["input_ids"][1:].clamp(min=4)
    with torch.no_grad():
        model.embedding.weight[3] = float("nan")
    clipper = clipper_of(model, trained(model), 0.5)
    total = clipped_sum(clipper, model, TASK, data, ALONE)
    assert torch.isfinite(total).all()
    assert gap(total, clipped_sum(clipper, model, TASK, some(data, slice(1, 6)), torch.arange(5))) <= 1e-6


def test_a_gradient_that_overflows_without_nan_contributes_nothing(clipper_of):
    model = tiny_model()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[10.0], [-10.0]]).expand(2, 4))  # no infinity meets its opposite
        model.embedding.weight *= 1e-3
    data = some(batch(16, torch.tensor([6] * 6)), slice(None)) | {"labels": torch.tensor([0, 1, 0, 1, 0, 1])}
    clipper = clipper_of(model, trained(model), 0.5)
    wanted = clipped_sum(clipper, model, TASK, some(data, slice(1, 6)), ALONE[:5])
    with clipper:
        clipper.begin()
        losses = TASK.sequence_losses(model, data)
        clipper.add(losses * torch.tensor([3e38, 1, 1, 1, 1, 1]), ALONE)
    assert gap(clipper.total, wanted) <= 1e-6


# --- the model is given back as it was


@pytest.mark.parametrize(
    ("adapter", "when"),
    [
        *(("full", when) for when in ("never", "before backward", "in backward", "outside")),
        ("lora", "in backward"),
        *(pytest.param("lora", when, marks=pytest.mark.slow) for when in ("never", "before backward", "outside")),
    ],
)
def test_the_model_is_given_back_as_it_was_whatever_happens(clipper_of, adapter, when):
    model, task = glm("language-model", adapter)
    before, data = remains(model), batch()
    clipper = clipper_of(model, trained(model), 0.5)

    def fail(_gradient):
        raise ZeroDivisionError

    for _ in range(2):  # a second round must find nothing of the first
        try:
            with clipper:
                clipper.begin()
                losses = task.sequence_losses(model, data)
                if when == "before backward":
                    raise ZeroDivisionError
                if when == "in backward":
                    losses.register_hook(fail)
                clipper.add(losses, ALONE)
                if when == "outside":
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert when != "never"
        assert remains(model) == before
    total = clipped_sum(clipper, model, task, data, ALONE)
    assert gap(total, clip(naive_units(model, task, data, ALONE), 0.5)) <= 1e-5


def test_a_pass_that_failed_leaves_nothing_in_the_next_sum(clipper_of):
    model, task = glm("language-model")
    clipper = clipper_of(model, trained(model), 0.5)
    wanted = clipped_sum(clipper, model, task, batch(), ALONE)
    with clipper:
        clipper.begin()
        task.sequence_losses(model, batch(seed=5))  # a forward pass that no backward pass followed
        clipper.begin()
        add(clipper, model, task, batch(), ALONE)
    assert gap(clipper.total, wanted) <= 1e-6


def test_evaluation_within_the_block_is_not_booked(clipper_of):
    model, task = glm("language-model")
    clipper = clipper_of(model, trained(model), 0.5)
    wanted = clipped_sum(clipper, model, task, batch(), ALONE)
    with clipper:
        clipper.begin()
        with torch.no_grad():
            task.sequence_losses(model, batch(seed=5))
        add(clipper, model, task, batch(), ALONE)
    assert gap(clipper.total, wanted) <= 1e-6


# --- norms


@given(
    st.integers(0, 2**31),
    st.lists(st.booleans(), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 5),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_gram_norms_are_the_norms_of_the_gradients(seed, kinds, units, tokens, shape):
    draw = torch.Generator().manual_seed(seed)
    rows, columns = shape
    uses, wanted = [], torch.zeros(units, rows, columns, dtype=torch.float64)
    for number, one_hot in enumerate(kinds):
        count = tokens + number
        left = torch.randint(0, rows, (units, count), generator=draw)
        dense = nn.functional.one_hot(left, rows).float()
        if not one_hot:
            left = dense = torch.randn(units, count, rows, generator=draw)
        right = torch.randn(units, count, columns, generator=draw)
        uses.append(Use(left, right))
        wanted += torch.einsum("unr,unc->urc", dense.double(), right.double())
    made = torch.full((units, rows, columns), float("nan"))
    write_gradients(uses, made)
    torch.testing.assert_close(made, wanted.float(), atol=1e-5, rtol=1e-5)
    if is_transpose_cheaper(uses, rows, columns):
        transposed = torch.empty(units, columns, rows)
        write_gradients([use.transpose() for use in uses], transposed)
        torch.testing.assert_close(transposed.transpose(1, 2), made, atol=1e-5, rtol=1e-5)
    factors, finite = torch.rand(units, generator=draw), torch.ones(units, dtype=torch.bool)
    share = torch.zeros(rows, columns)
    for use in uses:
        use.add_clipped(share, factors, finite)
    torch.testing.assert_close(
        share.double(), torch.einsum("u,urc->rc", factors.double(), wanted), atol=1e-5, rtol=1e-5
    )
    norms = wanted.square().sum((1, 2))
    torch.testing.assert_close(compute_gram_norms(uses), norms, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(compute_weight_norms(uses, rows, columns), norms, atol=1e-9, rtol=1e-5)


def test_norms_keep_their_digits_over_large_matrices():
    gradients = torch.randn(2, 700, 900, generator=torch.Generator().manual_seed(0))
    exact = gradients.double().square().sum((1, 2))
    torch.testing.assert_close(compute_squared_norms(gradients), exact, rtol=2e-7, atol=0)
