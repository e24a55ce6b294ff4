"""Lines of Flower's log by which a node's start is followed from another process: Flower gives no other sign."""

from typing import Final

CONNECTED: Final = "SuperNode ID"
"""Once the server has let the node in."""
