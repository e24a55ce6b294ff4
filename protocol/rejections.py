"""Reasons by which a server rejects a node; the node's commands read the cause from it: Flower has no field for one."""

from typing import Final

NOT_ENROLLED: Final = "is not enrolled, or was revoked"
"""End of the reason where the server does not know the node's key."""
