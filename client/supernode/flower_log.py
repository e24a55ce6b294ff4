"""Lines of Flower's log from which another process recognises a node's start: Flower has no event for it."""

from typing import Final

CONNECTED: Final = "SuperNode ID"
"""Begins the line after the server has accepted the node."""
