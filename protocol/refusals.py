"""Words by which a server turns a node away and the node's own commands know why: Flower carries no code of ours."""

from typing import Final

NOT_ENROLLED: Final = "is not enrolled, or was revoked"
"""The node's key."""
