"""The signed tree heads in a server's `Seal`."""

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.entries import is_signature
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.protocol.messages import Seal


def read_tree_heads(seal: Seal, log: str) -> tuple[SignedTreeHead, tuple[SignedTreeHead, str] | None]:
    """Read the server's signed tree head, and the site's last one with the server's countersignature, from a message.

    Args:
        seal: The server's message.
        log: Origin of the site's log (hex).

    Raises:
        PrivacyError: One of them is malformed.
    """
    fields = seal.to_fields()
    server_head = SignedTreeHead.from_fields(seal.log, fields)
    own = {name.removeprefix("your_"): value for name, value in fields.items() if name.startswith("your_")}
    if not own:
        return server_head, None
    countersignature = own.get("countersignature", "")
    if not is_signature(countersignature):
        raise PrivacyError("a checkpoint comes with its countersignature")
    return server_head, (SignedTreeHead.from_fields(log, own), str(countersignature))
