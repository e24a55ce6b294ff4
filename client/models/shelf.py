"""The released models that a node holds: that of the last run, and the one before, in the node's state folder.

    models/0000000012/              the model as transformers saves it, with its task and tokenizer
    models/0000000012/release.json  the server's signed manifest, the layout, and the SHA-256 of each file
    models/0000000012/vector.f32    the federated parameters, where the model's own files do not hold them (adapters)
    models/.incoming/               one that is being written; left over from a killed process, and removed by the next

A model comes to its place by a rename, when it is complete. It is the server's and holds nothing of the site's, so it
is not encrypted.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fedglm.compression.downlink import vector_sha256
from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, sync_folder, write_atomically
from fedglm.core.untrusted_files import read_regular, read_regular_blocks
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.protocol.model_manifest import MAX_MANIFEST, ModelManifest

KEPT: Final = 2
"""Number of models that a node keeps."""

_INCOMING: Final = ".incoming"
_RELEASE: Final = "release.json"
_VECTOR: Final = "vector.f32"
_DIGITS: Final = 10
_MAX_RELEASE: Final = 1 << 25
_MAX_FILE: Final = 1 << 40


class ModelShelfError(FedglmError, ValueError):
    """A model that the node does not hold, or that is damaged; the message names the reason and the remedy."""


@dataclass(frozen=True)
class HeldModel:
    """A model that the node holds.

    Attributes:
        folder: Its folder.
        manifest: What the server signed of it.
    """

    folder: Path
    manifest: ModelManifest


class ModelShelf:
    """The released models of a node.

    Args:
        folder: Folder of the models; it is created when first needed.
        keys: Public keys of the server, as the site has pinned them.
    """

    def __init__(self, folder: Path, keys: Iterable[PublicKey]) -> None:
        self._folder, self._keys = folder, tuple(keys)

    def read_manifest(self, text: str) -> ModelManifest:
        """Read a manifest that the server signed.

        Raises:
            PrivacyError: It is malformed, or not signed by the server.
        """
        return ModelManifest.read(text, self._keys)

    def open_newest(self) -> HeldModel | None:
        """Return the newest model, whose files are not read; None where the node has none.

        Raises:
            ModelShelfError: What the server signed of it cannot be read.
        """
        number = max(self._list_numbers(), default=None)
        if number is None:
            return None
        folder = self._locate(number)
        return HeldModel(folder, self._read_release(folder)[0])

    def open_verified(self, site: str) -> HeldModel:
        """Return the newest model, whose bits are those that the server signed.

        Args:
            site: Name of the site, for the message where it holds none.

        Raises:
            ModelShelfError: The node has none, or it is damaged.
        """
        if (held := self.open_newest()) is None:
            raise ModelShelfError(
                f"{site} holds no model yet: one comes at the end of a run that the site takes part in"
            )
        self.verify(held)
        return held

    def holds(self, manifest: ModelManifest) -> bool:
        """Return whether the newest model is that of a manifest, and undamaged."""
        try:
            newest = self.open_newest()
            if newest is None or newest.manifest != manifest:
                return False
            self.verify(newest)
        except ModelShelfError:
            return False
        return True

    def take(self, text: str, vector: np.ndarray, layout: Layout, save: Callable[[Path], None]) -> HeldModel:
        """Write a model and make it the newest; of the others the one before is kept.

        Args:
            text: The signed manifest.
            vector: Federated parameters, shape (n,), float32.
            layout: Names and shapes of the parameters.
            save: Writes the model to a new folder.

        Raises:
            PrivacyError: The manifest is not signed by the server, or is of another model.
            StorageError: It cannot be written; the models that are here stay.
        """
        manifest = self.read_manifest(text)
        if (vector_sha256(vector), layout.sha256) != (manifest.model_sha256, manifest.layout):
            raise PrivacyError("the model is another one than the server signed")
        incoming = self._folder / _INCOMING
        self._clear_incoming()
        try:
            with storage_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                save(incoming)
                if _read_vector_sha256(incoming, layout) != manifest.model_sha256:
                    write_atomically(incoming / _VECTOR, vector.astype("<f4", copy=False).tobytes())
            files = {path.name: _hash_file(path) for path in sorted(incoming.iterdir())}
            content = {"manifest": text, "names": layout.names, "shapes": layout.shapes, "files": files}
            write_atomically(incoming / _RELEASE, json.dumps(content) + "\n")
            return HeldModel(self._adopt(incoming), manifest)
        finally:
            self._clear_incoming()

    def find_vector(self, model_sha256: str, layout_sha256: str) -> np.ndarray | None:
        """Return the federated parameters with a SHA-256 (hex), of whichever model has them, shape (n,), float32.

        None where no undamaged model with that layout has them.
        """
        for number in sorted(self._list_numbers(), reverse=True):
            try:
                manifest, layout, _ = self._read_release(self._locate(number))
            except ModelShelfError:
                continue
            if (manifest.model_sha256, manifest.layout, layout.sha256) == (model_sha256, layout_sha256, layout_sha256):
                vector = _read_vector(self._locate(number), layout)
                if vector is not None and vector_sha256(vector) == model_sha256:
                    return vector
        return None

    def verify(self, held: HeldModel) -> None:
        """Check the bits of a model against the hash that the server signed.

        Where adapters were trained, what was signed are they; the merged weights beside are held to their SHA-256 as
        the node wrote them.

        Raises:
            ModelShelfError: A file is missing, or is not what it was; the message names it.
        """
        manifest, layout, files = self._read_release(held.folder)
        for name, sha256 in files.items():
            try:
                found = _hash_file(held.folder / name)
            except OSError as exc:
                raise self._damaged(held.folder / name) from exc
            if found != sha256:
                raise self._damaged(held.folder / name)
        signed = manifest.model_sha256
        if layout.sha256 != manifest.layout or _read_vector_sha256(held.folder, layout) != signed:
            raise self._damaged(held.folder)

    def _read_release(self, folder: Path) -> tuple[ModelManifest, Layout, dict[str, str]]:
        try:
            content = json.loads(read_regular(folder / _RELEASE, _MAX_RELEASE))
            manifest = self.read_manifest(_cut(content["manifest"]))
            layout = Layout(tuple(content["names"]), tuple(map(tuple, content["shapes"])))
            files = {Path(str(name)).name: str(sha256) for name, sha256 in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, CodecError, PrivacyError) as exc:
            raise self._damaged(folder / _RELEASE) from exc
        return manifest, layout, files

    def _adopt(self, incoming: Path) -> Path:
        """Put a complete model in its place, then remove the oldest."""
        numbers = sorted(self._list_numbers())
        place = self._locate(numbers[-1] + 1 if numbers else 1)
        with storage_errors(self._folder):
            incoming.rename(place)
            sync_folder(self._folder)
            for number in numbers[: len(numbers) + 1 - KEPT]:
                shutil.rmtree(self._locate(number), ignore_errors=True)
        return place

    def _clear_incoming(self) -> None:
        for left in self._folder.glob(f"{_INCOMING}*"), self._folder.glob(f".{_INCOMING}.*"):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)

    def _list_numbers(self) -> Iterator[int]:
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if path.is_dir() and len(path.name) == _DIGITS and path.name.isdecimal() and path.name.isascii():
                    yield int(path.name)

    def _locate(self, number: int) -> Path:
        return self._folder / f"{number:0{_DIGITS}d}"

    @staticmethod
    def _damaged(path: Path) -> ModelShelfError:
        return ModelShelfError(
            f"{path} is not what the server released: remove the model's folder; the next run brings one"
        )


def _cut(text: Any) -> str:
    return str(text)[: MAX_MANIFEST + 1]


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    for block in read_regular_blocks(path, _MAX_FILE):
        digest.update(block)
    return digest.hexdigest()


def _read_vector_sha256(folder: Path, layout: Layout) -> str | None:
    """Return the SHA-256 (hex) of the federated parameters in a model's folder; None where it does not hold them."""
    vector = _read_vector(folder, layout)
    return None if vector is None else vector_sha256(vector)


def _read_vector(folder: Path, layout: Layout) -> np.ndarray | None:
    """Read the federated parameters in a model's folder, (n,), float32; None where it does not hold them."""
    try:
        if (folder / _VECTOR).is_file():
            vector = np.fromfile(folder / _VECTOR, "<f4").astype(np.float32, copy=False)
            return vector if len(vector) == layout.size else None
        tensors: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError):  # a type that numpy does not have
        return None
    vector, start = np.empty(layout.size, np.float32), 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype != np.float32:
            return None
        vector[start : start + tensor.size] = tensor.ravel()
        start += tensor.size
    return vector
