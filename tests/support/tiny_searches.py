"""Searches for light models of a few thousand parameters, on what the dense model says, in about a second.

On its own text the dense model is the best there is, so that what is nearer to it has less loss.
"""

import hashlib
from dataclasses import replace
from functools import cache

from tiny_glms import CLASSES, LANGUAGE, SHAPE, random_examples, tiny_glm

from fedglm.autoglm.light.cache.identity import hash_examples
from fedglm.autoglm.light.model_made import sample_examples
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, train_for
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.public_text import PublicText
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import QatSettings, QuantizationSettings, VerificationSettings
from fedglm.autoglm.light.search.lightening import lighten
from fedglm.autoglm.light.search.pipeline import Source
from fedglm.autoglm.light.search.sources import DenseModel

__all__ = ["CLASSES", "LANGUAGE", "TERNARY", "make_plan", "make_recipe", "make_search", "run_search"]

TERNARY = Scheme(codes="ternary", block="row")
STEPS = 4
LAYERS = replace(SHAPE, layers=1)


def make_search(task=LANGUAGE, *, seed=0, text_seed=0):
    """A dense model of one layer and its text."""
    model = tiny_glm(task, LAYERS, seed=seed, spread=3.0).eval()
    model.config.architectures = [type(model).__name__]  # as save_pretrained writes it
    train, held_out, test = draw_text(task, seed, text_seed)
    text = PublicText(
        train=train,
        held_out=held_out,
        kind="file",
        origin="the model",
        sha256=hash_examples(train, held_out),
    )
    dense = DenseModel(model=model, task=task, folder=Folder(), run=None, data=None)
    return dense, Source(model=model, task=task, text=text, test=test)


@cache
def draw_text(task, seed, text_seed):
    """What that model says, to train on, to choose by and to measure on; it is drawn once."""
    model = tiny_glm(task, LAYERS, seed=seed, spread=3.0).eval()
    draw = sample_examples if task is LANGUAGE else draw_random
    return [draw(model, task, 48, seed=10 * text_seed + part) for part in range(3)]


def draw_random(_model, task, count, *, seed):
    """Random sequences, for a classifier."""
    return random_examples(count, task, seed=seed)


class Folder:
    """Where a model without files would lie."""

    name = "tiny"


def make_recipe(name="int4", *, scheme=None, min_cosine=-1.0, trains=True, **changes):
    """A recipe that quantizes alone; with the least cosine of -1 no layer deviates."""
    weights = scheme or Scheme(codes="int4", block="row")
    settings = QuantizationSettings(
        weights=weights,
        embedding=Scheme(codes="int8", block="row"),
        qat=QatSettings(training=train_for(STEPS)) if trains else None,
        verification=VerificationSettings(min_cosine=min_cosine),
        method="mse",
    )
    return Recipe(name=name, quantization=settings, **changes)


def make_plan(dense, *recipes, max_bytes=10**6, tolerance=10.0, **changes):
    """A plan of these recipes."""
    return LightenPlan(
        model_sha256=dense.sha256(),
        goals=Goals(max_bytes=max_bytes, tolerance=tolerance),
        training=train_for(STEPS),
        candidates=recipes,
        **changes,
    )


def run_search(plan, search, out, **options):
    """Run a plan; return what came of it, and the hash of every file of the release."""
    dense, source = search
    result = lighten(dense, source, plan, out, signing_key=None, compares=options.pop("compares", False), **options)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()} if out.exists() else {}
    return result, files
