"""What worker processes need, for the fork server to import once before it makes them.

In a module of its own, for it must come before anything else imports transformers.
"""

from importlib import import_module

from fedglm.client.supernode.lean_imports import import_lean

import_lean()
import_module("fedglm.simulations.nodes")
