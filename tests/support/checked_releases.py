"""Light releases of small GLMs that run, with golden answers: what a node validates."""

import json

import numpy as np
from light_releases import FACTS, KEY
from small_glms import config_of, random_classifier, random_glm, small_config, tensors_of, with_codes

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.autoglm.light.release.writer import write_light_release
from fedglm.autoglm.light.search.packaging import answer_prompts
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE
from fedglm.inference.weights.model import NumpyModel

PROMPTS = [[BOS_ID, *text] for text in (b"Public ", b"text of ", b"no site")]
CODES = {"low": -8, "high": 7, "block": 32}
_TASK = {"length": 64, "vocab_size": VOCAB_SIZE, "pad_id": PAD_ID, "bos_id": BOS_ID, "eos_id": EOS_ID, "table": None}


def make_checked_model(kind="language-model", codes=None):
    """A model of bytes with random codes, whose embedding and output layer differ: it says what its layers say."""
    if kind == "language-model":
        config = small_config(vocab_size=VOCAB_SIZE, tie_word_embeddings=False, pad_token_id=PAD_ID)
        glm, labels = random_glm(config), []
    else:
        glm, labels = random_classifier(vocab_size=VOCAB_SIZE), ["ill", "odd", "well"]
    task = {"kind": kind, **_TASK, "labels": labels}
    tensors = with_codes(tensors_of(glm), **(codes or CODES))
    return NumpyModel(tensors=tensors, config=json.loads(json.dumps(config_of(glm))), task=task)


def make_skeletons(model, kind="int4"):
    """The one graph of a release."""
    return {"decode": build_skeleton(model.config, choose_formats(model.tensors, model.config, kind))}


def write_checked(folder, model=None, *, answers_of=None, key=KEY, prompts=PROMPTS, kind="int4", facts=FACTS):
    """Write a release of a model, with the golden answers of another one if that is given; return its size."""
    model = model or make_checked_model()
    skeletons, asked = make_skeletons(model, kind), answers_of or model
    return write_light_release(
        folder,
        model,
        skeletons=skeletons,
        tokenizer=None,
        facts=facts,
        reference_parameters=100_000,
        signing_key=key,
        golden=answer_prompts(asked, skeletons, prompts),
    )


def change_code(model, name="model.layers.1.self_attn.v_proj.weight"):
    """The model with one code of one matrix another."""
    matrix = model.tensors[name]
    codes = matrix.codes.copy()
    codes[0, 0] = np.where(codes[0, 0] > 0, -8, 7)
    changed = type(matrix)(
        codes=codes, scales=matrix.scales, zeros=matrix.zeros, block=matrix.block, low=matrix.low, high=matrix.high
    )
    return NumpyModel(tensors={**model.tensors, name: changed}, config=model.config, task=model.task)
