"""Light releases that can be used: small models of random codes with a real graph, in a second."""

import tempfile
from pathlib import Path

import torch
from light_releases import FACTS
from saved_models import CLASSES, save_model
from small_glms import with_codes

from fedglm.autoglm.light.device.phases import NARROWEST
from fedglm.autoglm.light.release.writer import write_light_release
from fedglm.autoglm.light.search.packaging import build_skeletons, dense_to_numpy
from fedglm.autoglm.models.release import load_release
from fedglm.inference.weights.model import NumpyModel

__all__ = ["CLASSES", "write_used_release"]


def write_used_release(folder, key, *, kind="table", version=1, fill=None, formats=NARROWEST):
    """Write a release of an untrained model.

    Args:
        folder: Its folder.
        key: Who signs it.
        kind: Kind of the task, as in `saved_models.tasks`.
        version: Number of the release.
        fill: Value of all weights of the last norm; None leaves them.
        formats: Formats of its graphs.
    """
    with tempfile.TemporaryDirectory() as scratch:
        model, task = load_release(save_model(kind, Path(scratch) / "model"))
    if fill is not None:
        with torch.no_grad():
            model.model.norm.weight.fill_(fill)
    dense = dense_to_numpy(model, task)
    light = NumpyModel(
        tensors=with_codes(dense.tensors, low=-8, high=7, block=32), config=dense.config, task=dense.task
    )
    write_light_release(
        folder,
        light,
        skeletons=build_skeletons(light, formats),
        tokenizer=None,
        facts=FACTS.model_copy(update={"run": {"version": version}}),
        reference_parameters=100_000,
        signing_key=key,
    )
    return folder
