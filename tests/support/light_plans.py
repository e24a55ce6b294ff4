"""Public text and plans for a small language model whose search takes seconds."""

import json

from fedglm.autoglm.light.plan.families import make_recipe
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, TextSettings, train_for
from fedglm.autoglm.light.plan.plan_files import write_settings
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.light.search.sources import load_dense

TEXT = "the patient was seen in the clinic and felt well after a week of rest with no fever or cough"
WORDS = TEXT.split()


def write_text(path, rows=60):
    """Write records of a dozen words."""
    lines = [" ".join(WORDS[(row * 7 + at * (row % 5 + 1)) % len(WORDS)] for at in range(12)) for row in range(rows)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def write_plan(model, text, path, *, device=None, **goals):
    """A plan of one candidate, INT4 without a cut, whose training takes a few seconds."""
    dense = load_dense(model)
    training = train_for(4)
    plan = LightenPlan(
        model_sha256=dense.sha256(),
        goals=Goals.model_validate(goals),
        device=device,
        text=TextSettings(source=str(text)),
        training=training,
        candidates=(make_recipe("int4", training, shape=read_shape(dense.model)),),
    )
    write_settings(plan, path)
    return path
