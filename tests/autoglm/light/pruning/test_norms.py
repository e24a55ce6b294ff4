"""Norms fold exactly, and a norm whose weights are read elsewhere stays."""

import pytest
import torch
from prunable_glms import logits, small_glm
from small_tasks import text_task

from fedglm.autoglm.light.pruning.norms import fold_norms


@pytest.mark.parametrize(
    ("task", "tied", "left"),
    [
        (text_task(), True, ("model.norm",)),
        (text_task(), False, ()),
        (text_task(("no", "yes")), None, ()),
    ],
    ids=["tied", "untied", "classes"],
)
def test_folding_changes_nothing_but_rounding(task, tied, left):
    model = small_glm(task, tied=tied)
    before = logits(model)
    folded, stay = fold_norms(model)
    assert stay == left
    ones = {
        name: bool((parameter == 1).all())
        for name, parameter in folded.named_parameters()
        if name.endswith("norm.weight")
    }
    assert ones == {name: name.removesuffix(".weight") not in left for name in ones}
    # A product rounded to float32 is off by 2^-24 of itself; a logit sums 32 of them behind three layers.
    assert float((logits(folded) - before).abs().max() / before.abs().max()) < 7e-6
    assert torch.equal(logits(model), before)


def test_a_norm_folded_twice_or_not_at_all_is_noticed():
    model = small_glm()
    folded, _ = fold_norms(model)
    again, _ = fold_norms(folded)
    assert torch.equal(logits(again), logits(folded))
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.fill_(1.0)
    assert float((logits(model) - logits(folded)).abs().max()) > 1e-2
