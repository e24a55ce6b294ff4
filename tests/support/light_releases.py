"""Small light releases."""

import zlib

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from light_models import CONFIG, TASK, make_matrix, make_model, ternary_codes

from fedglm.autoglm.light.release.writer import write_light_release
from fedglm.inference.release.manifest import (
    FILES,
    MANIFEST,
    SIGNATURE,
    Facts,
    FileFact,
    Manifest,
    Measure,
    Privacy,
    hash_bytes,
)
from fedglm.inference.release.trust import Trust, sign_manifest
from fedglm.inference.weights.model import NumpyModel
from fedglm.privacy.keys.signing import SigningKey

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))  # that of the golden release
SKELETONS = {name: zlib.compress(b"a graph of many nodes " * 40 + name.encode(), 9) for name in ("decode", "prefill")}
FACTS = Facts(
    name="glm-tiny-light",
    run={"model_sha256": "0" * 64, "rounds": 3},
    privacy=Privacy(epsilon=2.5, delta=1e-5, unit="patient"),
    settings='[target]\nsize = "20x"\n',
    calibration_sha256=hash_bytes(b"public text"),
    measures=(Measure(name="perplexity", value=3.5, reference=3.4, control=3.3, n=1000, seed=7),),
    not_measured=("latency on an ARM core",),
    limits=("no advice to patients",),
    versions={"fedglm": "0.1"},
    license="apache-2.0",
)


def make_small_model():
    """A model of 1,100 parameters, which is opened in some milliseconds."""
    rng = np.random.default_rng(5)
    tensors = {
        "model.embed_tokens.weight": make_matrix(rng.integers(-8, 8, (32, 16)), low=-8, high=7, block=8),
        "model.layers.0.mlp.down_proj.weight": make_matrix(ternary_codes(rng, (32, 16)), low=-1, high=1),
        "model.norm.weight": np.linspace(0.5, 1.5, 16, dtype=np.float16).astype(np.float32),
    }
    return NumpyModel(tensors=tensors, config=CONFIG, task=TASK)


def write(folder, *, model=None, key=KEY, facts=FACTS, tokenizer=None, **changes):
    """Write a release of `make_model` with these changes, or of another model, and return its size."""
    return write_light_release(
        folder,
        model or make_model(**changes),
        skeletons=SKELETONS,
        tokenizer=tokenizer,
        facts=facts,
        reference_parameters=100_000,
        signing_key=key,
    )


def trust():
    """Trust in the owner of `KEY` alone."""
    return Trust.in_keys([KEY.public])


def read_files(folder):
    """Content of all files of a release, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_files(folder, files):
    """Replace what is in a folder by these files."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def rehash(files, *, key=None, **changes):
    """The files with a manifest that fits them and has these changes, as an attacker makes it; signed by `key`."""
    facts = {name: FileFact(bytes=len(files[name]), sha256=hash_bytes(files[name])) for name in FILES if name in files}
    manifest = Manifest.from_bytes(files[MANIFEST]).model_copy(update={"files": facts} | changes).to_bytes()
    others = {name: content for name, content in files.items() if name not in (MANIFEST, SIGNATURE)}
    return {**others, MANIFEST: manifest, **({SIGNATURE: sign_manifest(key, manifest)} if key else {})}
