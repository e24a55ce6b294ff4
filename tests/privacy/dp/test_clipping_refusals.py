"""Models that cannot be trained privately are refused before anything of them is used."""

import pytest
import torch
from clipping_reference import ALONE, CLIPPERS, batch, clip, clipped_sum, gap, glm, naive_units, remains, some, trained
from tiny_federation import TASK, tiny_model
from torch import nn

from fedglm.privacy.dp.clippers import make_clipper
from fedglm.privacy.dp.ghost_clipping import GhostClipper
from fedglm.privacy.dp.ghost_layers import find_unsupported_layers
from fedglm.privacy.dp.sample_clipping import SampleClipper
from fedglm.privacy.errors import PrivacyError


@pytest.fixture(params=CLIPPERS)
def clipper_of(request):
    return CLIPPERS[request.param]


class Positions(nn.Module):
    """Learned positions, looked up once for the whole batch: their gradient is the batch's."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(64, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):
        vectors = self.table(torch.arange(input_ids.shape[1])[None]) * attention_mask[..., None]
        return type("Output", (), {"logits": self.head(vectors.sum(1))})


class UsedOutside(nn.Module):
    """The head's weight is used past the layer, where no hook sees it."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(64, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):  # noqa: ARG002
        return type("Output", (), {"logits": self.head(self.table(input_ids).mean(1)) + self.head.weight.sum(1)})


class Normed(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(64, 4), norm, nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask):  # noqa: ARG002
        return type("Output", (), {"logits": self.head(self.norm(self.table(input_ids).mean(1)))})


@pytest.mark.parametrize("architecture", [Positions, UsedOutside])
def test_gradients_of_the_batch_as_a_whole_are_refused(clipper_of, architecture):
    model = architecture()
    # One class alone: what the records do to a weight behind the hooks' back must not cancel.
    clipper, data = clipper_of(model, trained(model), 0.5), batch() | {"labels": torch.zeros(6, dtype=torch.long)}
    before = remains(model)
    with pytest.raises(PrivacyError, match=r"record|whole"):
        clipped_sum(clipper, model, TASK, data, ALONE)
    assert remains(model) == before


@pytest.mark.parametrize("mode", ["ghost", "hooks", "auto"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, affine=False, track_running_stats=False)])
def test_batch_norm_is_refused_even_when_it_does_not_train(mode, norm):
    model = Normed(norm.requires_grad_(False))
    with pytest.raises(PrivacyError, match="mixes records"):
        make_clipper(model, trained(model), 1.0, mode)


@pytest.mark.parametrize("mode", ["ghost", "hooks", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_that_are_not_float32_are_refused(mode, dtype):
    model = tiny_model().to(dtype)
    with pytest.raises(PrivacyError, match="must be float32"):
        make_clipper(model, trained(model), 1.0, mode)


@pytest.mark.parametrize("mode", ["ghost", "hooks"])
def test_a_model_that_cannot_be_clipped_whole_is_refused(mode):
    model = tiny_model()
    with pytest.raises(PrivacyError, match="not among the parameters"):
        make_clipper(model, trained(model)[1:], 1.0, mode)
    with pytest.raises(PrivacyError, match="no parameter"):
        make_clipper(model, [], 1.0, mode)
    with pytest.raises(PrivacyError, match="evaluation mode"):
        make_clipper(model.eval(), trained(model), 1.0, mode)


def test_ghost_clipping_refuses_layers_that_it_does_not_know_and_auto_takes_hooks():
    model = Normed(nn.LayerNorm(4))
    data = batch() | {"labels": torch.tensor([0, 1] * 3)}
    assert find_unsupported_layers(model) == ["norm (LayerNorm)"]
    with pytest.raises(PrivacyError, match=r"norm \(LayerNorm\): choose clipping mode hooks"):
        make_clipper(model, trained(model), 1.0, "ghost")
    clipper = make_clipper(model, trained(model), 0.1)
    assert isinstance(clipper, SampleClipper)
    units = naive_units(model, TASK, data, ALONE)
    assert gap(clipped_sum(clipper, model, TASK, data, ALONE), clip(units, 0.1)) <= 1e-5


@pytest.mark.parametrize("kind", ["language-model", "classifier"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_auto_clips_a_glm_by_ghost(kind, adapter):
    model, _ = glm(kind, adapter)
    assert isinstance(make_clipper(model, trained(model), 1.0), GhostClipper)


@pytest.mark.parametrize("option", [{"scale_grad_by_freq": True}, {"max_norm": 1.0}, {"sparse": True}])
def test_embeddings_whose_gradient_depends_on_the_batch_are_unknown(option):
    model = tiny_model()
    model.embedding = nn.Embedding(16, 4, **option)
    assert find_unsupported_layers(model) == ["embedding (Embedding)"]


def test_a_layer_whose_forward_was_replaced_is_unknown():
    model = tiny_model()
    model.head.forward = lambda values: values @ model.head.weight.t()
    assert find_unsupported_layers(model) == ["head (Linear)"]


def test_gradient_checkpointing_is_refused_by_ghost():
    model, task = glm("language-model")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(PrivacyError, match="checkpointing"):
        clipped_sum(GhostClipper(model, trained(model), 1.0), model, task, batch(), ALONE)


@pytest.mark.parametrize("owners", [[0, 2, 2], [1, 2, 3], [0, 1, 0], [0, 1], []])
def test_owners_must_be_numbered_in_order(clipper_of, owners):
    model, task = glm("language-model")
    with clipper_of(model, trained(model), 1.0) as clipper:
        losses = task.sequence_losses(model, some(batch(), slice(0, 3)))
        with pytest.raises(PrivacyError, match="owners"):
            clipper.add(losses, torch.tensor(owners, dtype=torch.int64))
        with pytest.raises(PrivacyError, match="no gradient"):
            clipper.add(losses.detach(), torch.arange(3))
