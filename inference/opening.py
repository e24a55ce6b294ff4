"""A light release, opened: its session, its inputs and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedglm.inference.inputs.model_inputs import ModelInputs, open_inputs
from fedglm.inference.release.reader import open_release  # type: ignore[import-not-found]
from fedglm.inference.runtime.graph_session import GraphSession  # type: ignore[import-not-found]
from fedglm.inference.runtime.session import Session


class OpenedModel(NamedTuple):
    """What a `LiteModel` is made of."""

    session: Session
    inputs: ModelInputs
    facts: Mapping[str, Any]


def open_light(folder: Path, *, trust: Any, threads: int) -> OpenedModel:
    """Open a light release.

    Args:
        folder: Folder of the release.
        trust: Whose signature it must have.
        threads: Threads that onnxruntime may use.

    Raises:
        InferenceError: The folder holds no light release, or one that is damaged or signed by nobody trusted.
    """
    release = open_release(folder, trust=trust)
    model = release.model
    session = GraphSession.open(release.skeletons["decode"], model.tensors, model.config, threads=threads)
    facts = {"runtime": "onnxruntime", "release": str(folder)}
    return OpenedModel(session, open_inputs(folder, model.config), facts)
