"""A node's reply to the server's offer of the model that a run ends with."""

import logging

from fedglm.client.models.shelf import ModelShelf
from fedglm.client.node import Node
from fedglm.core.files import StorageError
from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.messages import ModelReply
from fedglm.protocol.model_manifest import ModelManifest

LOG = logging.getLogger(__name__)


def take_model(shelf: ModelShelf, node: Node, manifest: ModelManifest, text: str, downlink: bytes) -> ModelReply:
    """Take the model that the server offers, if the node does not hold it, and say what it holds then.

    Nothing here depends on the site's records.

    Args:
        shelf: Released models of the node.
        node: The node in the run.
        manifest: What the server signed of the model.
        text: Text of the manifest.
        downlink: Message of the versioned downlink that leads to the model.

    Returns:
        The reply.

    Raises:
        StateError: The node's state is damaged.
    """
    if shelf.holds(manifest):
        return ModelReply(model=manifest.model_sha256)
    held, vector = node.rebuild(manifest.run, downlink)
    if vector is None:
        return ModelReply(model="", holds=held)
    try:
        shelf.take(text, vector, node.layout, lambda folder: node.save_model(vector, folder))
    except StorageError as exc:
        LOG.error("%s", exc)
        return ModelReply(model="", fault="the model could not be written")
    except PrivacyError as exc:
        return ModelReply(model="", fault=str(exc))
    return ModelReply(model=manifest.model_sha256)
