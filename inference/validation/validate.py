"""Validating a light release on the device that is to use it: is it what was released, and does it work here."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from fedglm.core.untrusted_files import read_regular
from fedglm.core.untrusted_text import clean_text
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.golden import unpack_golden
from fedglm.inference.release.manifest import MANIFEST, MAX_MANIFEST_BYTES, hash_bytes
from fedglm.inference.release.reader import LightRelease, open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.checks import check_answers, check_unanswered
from fedglm.inference.validation.use import measure_use
from fedglm.inference.validation.validation import Check, Validation, conclude

_ORIGIN, _ANSWERS, _USE = "signature and hashes", "exact logits", "use"


def validate_release(folder: str | Path, *, trust: Trust, threads: int = 1) -> Validation:
    """Validate a release on this device; takes some seconds.

    A release that is damaged or signed by nobody trusted is not run.

    Args:
        folder: Its folder.
        trust: Whose signature it must have; `Trust.unverified()` runs it whoever made it, and the result says so.
        threads: Number of threads of a run.

    Raises:
        InferenceError: There is no release in the folder.
    """
    path = Path(folder).absolute()  # a whole path, so that errors can be told without it
    try:
        blob = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError as exc:
        raise InferenceError(f"{path} holds no light release (it has no {MANIFEST})") from exc
    except OSError as exc:
        raise InferenceError(f"{path / MANIFEST} cannot be read ({exc.strerror}): fetch the release again") from exc
    manifest, runtime = hash_bytes(blob), onnxruntime.__version__
    try:
        release = open_release(path, trust=trust)
        if release.manifest.to_bytes() != blob:
            raise InferenceError("the release was replaced while it was validated")
    except InferenceError as exc:
        found = Check(name=_ORIGIN, passed=False, detail=_explain(exc, path))
        return conclude(manifest, [found], runtime=runtime, threads=threads)
    checks = [Check(name=_ORIGIN, passed=True if trust.verifies else None, detail=release.provenance)]
    checks += _check_answers(release, threads)
    use = None
    try:
        use = measure_use(path, manifest=manifest, threads=threads)
    except InferenceError as exc:
        checks.append(Check(name=_USE, passed=False, detail=_explain(exc, path)))
    return conclude(
        manifest,
        checks,
        runtime=runtime,
        threads=threads,
        signer=release.signer,
        verified=release.verified,
        use=use,
    )


def _check_answers(release: LightRelease, threads: int) -> tuple[Check, ...]:
    golden = unpack_golden(release.manifest.golden)
    try:
        if golden:
            return check_answers(release, golden, threads=threads)
        unchecked = Check(name=_ANSWERS, passed=None, detail="the release has no golden answers")
        return unchecked, check_unanswered(release, threads=threads)
    except InferenceError as exc:
        return (Check(name=_ANSWERS, passed=False, detail=_explain(exc, release.folder)),)


def _explain(exc: InferenceError, folder: Path) -> str:
    """Return an error without the path of the node's folder, which is nobody else's business."""
    text = str(exc).removeprefix(f"{folder}: ").replace(f"{folder}/", "").replace(str(folder), "the release")
    return clean_text(text, 400)
