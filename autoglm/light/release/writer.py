"""Writing a light release: one folder of which every byte is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.release.card import write_card
from fedglm.core.canonical_json import canonical_json
from fedglm.inference.release.folder import write_folder
from fedglm.inference.release.golden import GoldenAnswer, pack_golden
from fedglm.inference.release.manifest import (
    CARD,
    CONFIG,
    FILES,
    MANIFEST,
    SCHEMA,
    SIGNATURE,
    SKELETONS,
    TASK,
    TOKENIZER,
    WEIGHTS,
    Facts,
    FileFact,
    Manifest,
    hash_bytes,
)
from fedglm.inference.release.reader import read_model
from fedglm.inference.release.skeletons import pack_skeletons
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Signer, sign_manifest
from fedglm.inference.weights.container import pack_weights
from fedglm.inference.weights.limits import DEFAULT_LIMITS
from fedglm.inference.weights.model import NumpyModel, same_tensors

_ROUNDS: Final = 4


@dataclass(frozen=True, kw_only=True)
class ReleaseSize:
    """The bytes of a release.

    Attributes:
        files: Bytes of each file, by name.
        reference_bytes: Bytes of the model that was made light, in FP32, a tied output layer counted once.
    """

    files: Mapping[str, int]
    reference_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    @property
    def size_ratio(self) -> float:
        """How many times less that is than the reference."""
        return self.reference_bytes / self.bytes


def write_light_release(
    folder: str | Path,
    model: NumpyModel,
    *,
    skeletons: Mapping[str, bytes],
    tokenizer: str | Path | None,
    facts: Facts,
    reference_parameters: int,
    signing_key: Signer | None,
    golden: Sequence[GoldenAnswer] = (),
) -> ReleaseSize:
    """Write a light release; what is there already is replaced if it is one.

    Args:
        folder: Its folder.
        model: The model.
        skeletons: Graphs without weights, as the runtime takes them, by name.
        tokenizer: Folder of a tokenizer's files; None for the byte tokenizer, which needs none.
        facts: What is known of the model.
        reference_parameters: Number of parameters of the model that was made light, a tied output layer counted once.
        signing_key: Key of the server; None for a release that only its own maker opens.
        golden: What the model says to a few prompts of public text, by which a node checks what it runs.

    Raises:
        ModelError: The tokenizer's folder holds none, or the model cannot be written without loss.
        InferenceError: The folder holds something else, or the model or a skeleton cannot be packed.
        StorageError: The folder cannot be written; an earlier release is unchanged.
    """
    files = compose_files(
        model,
        skeletons=skeletons,
        tokenizer=tokenizer,
        facts=facts,
        reference_parameters=reference_parameters,
        signing_key=signing_key,
        golden=golden,
    )
    content = {name: blob for name, blob in files.items() if name not in (MANIFEST, SIGNATURE)}
    read, _ = read_model(Manifest.from_bytes(files[MANIFEST]), content, DEFAULT_LIMITS)
    if not same_tensors(read.tensors, model.tensors) or read.config != model.config or read.task != model.task:
        raise ModelError("the light model is not read back as it was written: its configuration must be plain JSON")
    write_folder(folder, files)
    return ReleaseSize(
        files={name: len(blob) for name, blob in files.items()}, reference_bytes=4 * reference_parameters
    )


def compose_files(
    model: NumpyModel,
    *,
    skeletons: Mapping[str, bytes],
    tokenizer: str | Path | None,
    facts: Facts,
    reference_parameters: int,
    signing_key: Signer | None,
    golden: Sequence[GoldenAnswer] = (),
) -> dict[str, bytes]:
    """Return the files of a release by name; the arguments are those of `write_light_release`, which checks them too.

    Raises:
        ModelError: The tokenizer's folder holds none.
        InferenceError: The model or a skeleton cannot be packed.
    """
    packed, sizes = pack_skeletons(skeletons)
    files = {
        WEIGHTS: pack_weights(model.tensors),
        SKELETONS: packed,
        CONFIG: canonical_json(dict(model.config)),
        TASK: canonical_json(dict(model.task)),
        **({} if tokenizer is None else _read_tokenizer(Path(tokenizer))),
    }
    parameters = model.count_parameters()
    answers = pack_golden(golden, model.config["vocab_size"]) if golden else ""
    total, before = 0, -1
    for _ in range(_ROUNDS):  # the card states the size of all files, its own included
        if total == before:
            break
        files[CARD] = write_card(
            facts,
            model.config,
            parameters=parameters,
            reference_parameters=reference_parameters,
            size=total or 1,
        )
        manifest = Manifest(
            fedglm_schema=SCHEMA,
            parameters=parameters,
            reference_parameters=reference_parameters,
            files={name: _describe(files[name]) for name in FILES if name in files},
            skeletons=sizes,
            facts=facts,
            golden=answers,
        )
        blob = manifest.to_bytes()
        signature = {} if signing_key is None else {SIGNATURE: sign_manifest(signing_key, blob)}
        total, before = sum(map(len, files.values())) + len(blob) + SIGNATURE_FILE_BYTES * len(signature), total
    return {**files, MANIFEST: blob, **signature}


def _describe(content: bytes) -> FileFact:
    return FileFact(bytes=len(content), sha256=hash_bytes(content))


def _read_tokenizer(folder: Path) -> dict[str, bytes]:
    files = {name: (folder / name).read_bytes() for name in TOKENIZER if (folder / name).is_file()}
    if TOKENIZER[0] not in files:
        raise ModelError(f"{folder}: holds no {TOKENIZER[0]}; a release with the byte tokenizer needs none")
    return files
