"""A node's reply to the server's offer of a light release."""

from fedglm.client.light.shelf import LightError, LightShelf, UnfitError
from fedglm.core.files import StorageError
from fedglm.core.untrusted_text import clean_text
from fedglm.protocol.messages import LightOffer, LightReply

_MAX_FAULT = 200


def take_offer(shelf: LightShelf, offer: LightOffer, blob: bytes | None) -> tuple[LightReply, str | None]:
    """Take the release that the server offers, if any, and say what the node holds then.

    Nothing here depends on the site's records, so that the server may learn why a release was not taken; how it works
    on the site's machine is for the policy to permit.

    Args:
        shelf: Light releases of the node.
        offer: The offer.
        blob: The release, whole or as a delta; None for a question.

    Returns:
        The reply, and how the release works here as JSON; None where it was not tried.
    """
    fault = validation = None
    if blob is not None:
        try:
            validation = shelf.take(blob, base=offer.base).to_json()
        except UnfitError as exc:  # what was found leaves only where the policy permits
            fault, validation = "the light release was not taken", exc.validation.to_json()
        except LightError as exc:
            fault = clean_text(str(exc))[:_MAX_FAULT]
        except StorageError:
            fault = "the light release could not be written"
    version, manifest = shelf.describe()
    return LightReply(version=version, manifest=manifest, fault=fault), validation
