"""A base model from elsewhere, as a GLM folder that fedglm and transformers load."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.importing.conversion import to_glm
from fedglm.autoglm.models.importing.folder_source import FolderSource
from fedglm.autoglm.models.importing.gguf_source import GgufSource
from fedglm.autoglm.models.importing.llama import LlamaSource, Progress, check_tensors
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.core.files import storage_errors, sync_folder


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """What an import wrote.

    Attributes:
        folder: The folder.
        parameters: Number of parameters, a tied output counted once.
        vocab_size: Rows of the embedding.
        max_length: Maximum sequence length in tokens.
        nbytes: Size of all its files.
    """

    folder: Path
    parameters: int
    vocab_size: int
    max_length: int
    nbytes: int


def import_base(source: Path, folder: Path, *, progress: Progress | None = None) -> ImportedModel:
    """Make a GLM folder of a Llama in a GGUF file or in a folder of transformers, with its tokenizer, in float32.

    Nothing is downloaded, unpickled or executed. The folder is renamed into place when it is complete.

    Args:
        source: A GGUF file, or a folder with config.json, safetensors and a tokenizer.
        folder: Folder to make; it must not exist, or be empty.
        progress: Called as parameters are read.

    Raises:
        ModelError: The source is damaged, no Llama, or one that a GLM cannot represent; or the folder holds something.
    """
    target = folder.absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{folder}: holds something already; choose a new folder")
    try:
        opened = _open_source(source)
        check_tensors(opened.shape, opened.sizes)
        with quiet_transformers():
            tokenizer = opened.load_tokenizer()
            if tokenizer.pad_token_id is None:
                if tokenizer.eos_token is None:
                    raise ModelError("its tokenizer has neither a padding nor an end token")
                tokenizer.pad_token = tokenizer.eos_token
            if len(tokenizer) > opened.shape.vocab_size:
                raise ModelError(
                    f"its tokenizer has {len(tokenizer)} tokens, and it {opened.shape.vocab_size} embeddings"
                )
            model = to_glm(opened, tokenizer, progress=progress)
    except OSError as exc:
        raise ModelError(f"{source}: {exc.strerror or exc}") from exc
    except ModelError as exc:
        raise ModelError(f"{source}: {exc}") from exc
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch, storage_errors(target):
        made = Path(scratch) / "made"
        with quiet_transformers():
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
        nbytes = sum(path.stat().st_size for path in made.iterdir())
        for path in made.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(made)
        if target.exists():
            target.rmdir()
        made.rename(target)
        sync_folder(target.parent)
    shape = opened.shape
    return ImportedModel(
        folder=folder,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        nbytes=nbytes,
    )


def _open_source(source: Path) -> LlamaSource:
    if source.is_dir():
        return FolderSource(source)
    if not source.exists():
        raise ModelError("there is no such file or folder; nothing is ever downloaded")
    return GgufSource(source)
