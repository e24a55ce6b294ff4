"""LiteModels on a real graph of one small layer, opened in milliseconds and without torch: weights are random.

The graph is a language model's of 64 tokens. Its outputs behind a text's last token pass for a classifier's of 64
classes too.
"""

import itertools

import numpy as np

from fedglm.inference.device.tiny_model import skeleton_file, tiny_config
from fedglm.inference.inputs.model_inputs import ModelInputs
from fedglm.inference.inputs.task import TaskDescription
from fedglm.inference.inputs.tokenizer import Encoded
from fedglm.inference.model import LiteModel
from fedglm.inference.runtime.architecture import read_architecture
from fedglm.inference.runtime.graph_session import GraphSession

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "
BEGIN = 63
CLASSES = tuple(f"c{number}" for number in range(64))


class LetterTokenizer:
    """A letter is a token; texts begin with the 64th."""

    vocab_size, eos_id = 64, None

    def encode_prompt(self, text):
        return np.array([BEGIN, *map(LETTERS.index, text)], dtype=np.int64)

    def encode_whole(self, text, length):
        ids = self.encode_prompt(text)
        return Encoded(ids[:length], len(ids) > length)

    def stream(self):
        return self

    def feed(self, token):
        return "" if token == BEGIN else LETTERS[token]

    def finish(self):
        return ""


class Recorded:
    """A session that notes the shape of each of its runs."""

    def __init__(self, session):
        self.session, self.runs = session, []
        self.outputs, self.max_length, self.vocab_size = session.outputs, session.max_length, session.vocab_size

    def run(self, ids, cache=None, *, logits_at=None, mask=None):
        self.runs.append(ids.shape)
        return self.session.run(ids, cache, logits_at=logits_at, mask=mask)


def open_graph(seed=0):
    """A session; its weights have the deviation that keeps a Linear's output as large as its input."""
    config, rng = tiny_config(1), np.random.default_rng(seed)
    tensors = {
        name: rng.normal(1 if "norm" in name else 0, 0.2 if len(shape) == 1 else shape[-1] ** -0.5, shape)
        for name, shape in read_architecture(config).tensor_shapes().items()
    }
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    return GraphSession.open(skeleton_file(1).read_bytes(), tensors, config)


def make_inputs(kind="language-model", *, classes=CLASSES, length=32):
    labels = () if kind == "language-model" else classes
    task = TaskDescription(
        kind=kind, length=length, vocab_size=64, pad_id=0, bos_id=BEGIN, eos_id=BEGIN, labels=labels, table=None
    )
    return ModelInputs(task=task, end_ids=frozenset({7}), tokenizer=LetterTokenizer(), table=None)


def make_model(kind="language-model", *, seed=0, session=None, classes=CLASSES, **options):
    session = session or open_graph(seed)
    return LiteModel(session, make_inputs(kind, classes=classes), facts={"runtime": "a test"}, **options)


def make_texts(count, *, most=20, begin="", seed=0):
    """Different texts of letters, each behind the same beginning."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most + 1, count)
    drawn = rng.choice(list(LETTERS[:8]), int(sizes.sum())).tolist()
    letters = itertools.chain(drawn)
    return [begin + "".join(itertools.islice(letters, size)) for size in sizes.tolist()]
