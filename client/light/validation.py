"""A light release tried on the node that is to use it, before it takes the place of the one before.

The one place where a node checks more of a release than its signature, sizes and hashes. No record of the site is used.
"""

import importlib.util
import logging
from typing import Final

from fedglm.inference.release.manifest import hash_bytes
from fedglm.inference.release.reader import LightRelease
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.isolated import validate_in_process
from fedglm.inference.validation.validation import Validation

LOG = logging.getLogger(__name__)

LIMIT_S: Final = 60.0
"""Seconds that a validation may take: half of what the server waits for a node's reply, which is also to travel."""


def validate(release: LightRelease) -> Validation | None:
    """Validate a release on this node in a process of its own; what takes longer than `LIMIT_S` does not work here.

    Args:
        release: The release, with its signature, sizes and hashes checked.

    Returns:
        What was found; None where onnxruntime is not installed, so that nobody knows.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        LOG.warning("a light release is kept unvalidated: onnxruntime is missing; pip install 'fedglm[edge]'")
        return None
    signers = [] if release.signer is None else [release.signer]
    manifest = hash_bytes(release.manifest.to_bytes())
    return validate_in_process(release.folder, trust=Trust.in_keys(signers), manifest=manifest, limit_s=LIMIT_S)
