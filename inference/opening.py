"""A light release, opened: its session, its inputs and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedglm.inference.inputs.model_inputs import ModelInputs, make_inputs
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.runtime.session import Session
from fedglm.privacy.keys.signing import PublicKey


class OpenedModel(NamedTuple):
    """What a `LiteModel` is made of."""

    session: Session
    inputs: ModelInputs
    facts: Mapping[str, Any]


def open_light(folder: Path, *, keys: Iterable[str], threads: int) -> OpenedModel:
    """Open a light release.

    Args:
        folder: Folder of the release.
        keys: Public keys, of 64 digits each, of those whose signature is enough; without any it is opened whoever made
            it, and the facts say so.
        threads: Threads that onnxruntime may use.

    Raises:
        InferenceError: The folder holds no light release, or one that is damaged or signed by nobody trusted.
        PrivacyError: A key is none.
    """
    trusted = [PublicKey.from_hex(key) for key in keys]
    release = open_release(folder, trust=Trust.in_keys(trusted) if trusted else Trust.unverified())
    model = release.model
    session = open_session(release.skeletons, model.tensors, model.config, threads=threads)
    facts = {
        "parameters": release.manifest.parameters,
        "runtime": "onnxruntime",
        "folder": str(folder),
        "verified": release.verified,
        "provenance": release.provenance,
    }
    return OpenedModel(session, make_inputs(release.files, model.config), facts)
