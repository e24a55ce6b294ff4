"""A light release, opened: its session, its inputs and what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedglm.inference.inputs.model_inputs import ModelInputs, make_inputs
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.runtime.session import Session
from fedglm.privacy.keys.signing import PublicKey

if TYPE_CHECKING:
    from fedglm.inference.batching.costs import BatchCosts


class OpenedModel(NamedTuple):
    """What a `LiteModel` is made of.

    Attributes:
        session: The model.
        inputs: Its inputs.
        facts: What is known of it.
        costs: Its latencies by a device's file; None where none was given.
    """

    session: Session
    inputs: ModelInputs
    facts: Mapping[str, Any]
    costs: BatchCosts | None = None


def open_light(folder: Path, *, keys: Iterable[str], threads: int, device: Path | None = None) -> OpenedModel:
    """Open a light release.

    Args:
        folder: Folder of the release.
        keys: Public keys, of 64 digits each, of those whose signature is enough; without any it is opened whoever made
            it, and the facts say so.
        threads: Threads that onnxruntime may use.
        device: File of this device, by ``fedglm device probe``, from which latencies are predicted.

    Raises:
        InferenceError: The folder holds no light release, or one that is damaged or signed by nobody trusted; or the
            device's file cannot be used.
        PrivacyError: A key is none.
    """
    trusted = [PublicKey.from_hex(key) for key in keys]
    release = open_release(folder, trust=Trust.in_keys(trusted) if trusted else Trust.unverified())
    costs = None
    if device is not None:
        from fedglm.inference.device.model_costs import predict_costs  # scipy comes with it

        costs = predict_costs(device, release.model.config, release.skeletons, threads)
    facts = {
        "parameters": release.manifest.parameters,
        "runtime": "onnxruntime",
        "folder": str(folder),
        "verified": release.verified,
        "provenance": release.provenance,
    }
    inputs = make_inputs(release.files, release.model.config)
    tensors, config, skeletons = dict(release.model.tensors), release.model.config, release.skeletons
    del release  # and with it the files' bytes: ONNX Runtime is about to take as much
    session = open_session(skeletons, tensors, config, threads=threads, filled=tensors.clear)
    return OpenedModel(session, inputs, facts, costs)
