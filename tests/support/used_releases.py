"""Light releases that can be used: small models in float16 with a real graph, in seconds."""

import torch
from light_releases import FACTS
from saved_models import CLASSES, tasks

from fedglm.autoglm.light.release.writer import write_light_release
from fedglm.autoglm.light.search.packaging import build_skeletons, dense_to_numpy
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import ModelSettings

__all__ = ["CLASSES", "write_used_release"]


def write_used_release(folder, key, *, kind="table", version=1, fill=None):
    """Write a release of an untrained model.

    Args:
        folder: Its folder.
        key: Who signs it.
        kind: Kind of the task, as in `saved_models.tasks`.
        version: Number of the release.
        fill: Value of all weights of the last norm; None leaves them.
    """
    task = tasks()[kind]
    model = build_model(ModelSettings(preset="glm-0.1m"), task, seed=1).train(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.half().float())
            if fill is not None and name == "model.norm.weight":
                parameter.fill_(fill)
    numpy_model = dense_to_numpy(model, task)
    write_light_release(
        folder,
        numpy_model,
        skeletons=build_skeletons(numpy_model, prefill="fp32", decode="fp32"),
        tokenizer=None,
        facts=FACTS.model_copy(update={"run": {"version": version}}),
        reference_parameters=100_000,
        signing_key=key,
    )
    return folder
