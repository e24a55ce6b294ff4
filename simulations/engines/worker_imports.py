"""Imports of the worker processes, which the fork server preloads once before it forks them.

A module of its own, because it must run before anything else imports transformers.
"""

from importlib import import_module

from fedglm.client.supernode.lean_imports import import_lean

import_lean()
import_module("fedglm.simulations.nodes")
# Numba prepares itself at the first call of a compiled loop, for most of a second: here once, for all workers.
import_module("fedglm.compression.kernels.range_coder").new_model(1)
