"""A node's reply to the server's offer of a light release."""

import logging

from fedglm.client.light.shelf import LightError, LightShelf, UnfitError
from fedglm.core.files import StorageError
from fedglm.core.untrusted_text import clean_text
from fedglm.inference.validation.validation import Validation
from fedglm.protocol.messages import LightOffer, LightReply

LOG = logging.getLogger(__name__)

_MAX_FAULT = 200


def take_offer(shelf: LightShelf, offer: LightOffer, blob: bytes | None) -> tuple[LightReply, Validation | None]:
    """Take the release that the server offers, if any, and say what the node holds then.

    Nothing here depends on the site's records, so that the server may learn why a release was not taken; how it works
    on the site's machine is for the policy to permit.

    Args:
        shelf: Light releases of the node.
        offer: The offer.
        blob: The release, whole or as a delta; None for a question.

    Returns:
        The reply; and how the release works here that was offered and does not, or else the one that is held. None
        where nobody knows.
    """
    fault = unfit = None
    if blob is not None:
        try:
            shelf.take(blob, base=offer.base)
        except UnfitError as exc:  # what was found leaves only where the policy permits
            LOG.error("%s", exc)
            fault, unfit = "the light release was not taken", exc.validation
        except LightError as exc:
            fault = clean_text(str(exc))[:_MAX_FAULT]
        except StorageError as exc:
            LOG.error("%s", exc)
            fault = "the light release could not be written"
    version, manifest = shelf.describe()
    reply = LightReply(version=version, manifest=manifest, fault=fault, unfit=None if unfit is None else True)
    return reply, unfit or shelf.read_validation(manifest)
