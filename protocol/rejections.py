"""Words by which a server rejects a node, and by which the node's own commands know why: Flower has no field for it."""

from typing import Final

NOT_ENROLLED: Final = "is not enrolled, or was revoked"
"""How the reason ends where the server does not know the node's key."""
