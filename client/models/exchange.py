"""A node's reply to the server's offer of the model that a run ends with."""

import logging

from fedglm.client.models.shelf import ModelShelf
from fedglm.client.node import Node
from fedglm.core.files import StorageError
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.protocol.messages import ModelOffer, ModelReply
from fedglm.protocol.model_manifest import ModelManifest

LOG = logging.getLogger(__name__)


def take_model(shelf: ModelShelf, node: Node, offer: ModelOffer, downlink: bytes) -> tuple[ModelReply, ModelManifest]:
    """Take the model that the server offers, if the node does not hold it, and say what it holds then.

    Nothing here depends on the site's records.

    Args:
        shelf: Released models of the node.
        node: The node in the run.
        offer: The offer.
        downlink: Message of the versioned downlink that leads to the model.

    Returns:
        The reply, and the manifest.

    Raises:
        Refusal: Rule `model`: the manifest is not signed by the server, or is of another run.
        StateError: The node's state is damaged.
    """
    try:
        manifest = shelf.read_manifest(offer.manifest)
    except PrivacyError as exc:
        raise Refusal("model", str(exc)) from exc
    if manifest.run != offer.run or manifest.layout != node.layout.sha256:
        raise Refusal("model", "the model that was offered is of another run or layout than the plan")
    if shelf.holds(manifest):
        return ModelReply(model=manifest.model_sha256), manifest
    held, vector = node.rebuild(offer.run, downlink)
    if vector is None:
        return ModelReply(model="", holds=held), manifest
    try:
        shelf.take(offer.manifest, vector, node.layout, lambda folder: node.save_model(vector, folder))
    except StorageError as exc:
        LOG.error("%s", exc)
        return ModelReply(model="", fault="the model could not be written"), manifest
    except PrivacyError as exc:
        return ModelReply(model="", fault=str(exc)), manifest
    return ModelReply(model=manifest.model_sha256), manifest
