"""Checks before a site's node starts, which report at once what is wrong and how to correct it."""

import datetime
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedglm.client.preflight.custody_checks import check_keys, check_policy
from fedglm.client.preflight.data_checks import check_data
from fedglm.client.preflight.link_checks import check_authority, check_link
from fedglm.client.site.folder import Site, open_site
from fedglm.client.site.settings import SiteError
from fedglm.core.findings import Finding, failure, ok, warning

_TIMEOUT_S = 10.0  # of the server's answer
_MIN_FREE, _ENOUGH_FREE = 100 * 2**20, 2**30  # bytes; a node keeps about three copies of the model
_MIN_PYTHON = (3, 11)
_FLOWER = ((1, 41), (1, 43))  # minimum, and upper limit, which is excluded


def preflight(folder: Path, *, timeout_s: float = _TIMEOUT_S) -> list[Finding]:
    """Check everything that a node needs.

    Args:
        folder: Folder of the site.
        timeout_s: Longest time to wait for the server, in seconds.

    Returns:
        The findings, in the order in which faults are best corrected.
    """
    software = _check_software()
    try:
        site = open_site(folder)
    except SiteError as exc:
        return [software, failure("settings", str(exc), "correct it, then check again")]
    settings = ok("settings", f"{site.name} of {site.kit.federation}, server {site.server}")
    data = check_data(site)
    return [
        software,
        settings,
        *_check_device(site),
        _check_state(site),
        check_keys(site),
        check_authority(site, datetime.datetime.now(datetime.UTC)),
        *check_link(site, timeout_s),
        *data.findings,
        *check_policy(site, data.units),
    ]


def _check_software() -> Finding:
    check = "software"
    if sys.version_info < _MIN_PYTHON:
        return failure(check, f"Python {platform.python_version()}", "install Python 3.11 or newer")
    try:
        flower = version("flwr")
    except PackageNotFoundError:
        return failure(check, "Flower is not installed", "install fedglm again: pip install fedglm")
    minimum, limit = _FLOWER
    if not minimum <= tuple(int(part) for part in flower.split(".")[:2]) < limit:
        return failure(
            check,
            f"Flower {flower}",
            f'install the one that is tested: pip install "flwr>={_format_version(minimum)},<{_format_version(limit)}"',
        )
    return ok(check, f"fedglm {version('fedglm')}, Flower {flower}, Python {platform.python_version()}")


def _format_version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _check_device(site: Site) -> list[Finding]:
    if site.settings.site.device != "cuda":
        return []
    import torch  # takes seconds, which a site without a GPU need not wait for

    if torch.cuda.is_available():
        return [ok("device", torch.cuda.get_device_name())]
    return [failure("device", "cuda is asked for and torch finds no GPU", 'give device = "auto" in site.toml')]


def _check_state(site: Site) -> Finding:
    """Check that the node's state can be written, and has enough space on its disk."""
    check, folder = "state", site.state
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        return failure(
            check, f"{folder} cannot be written: {exc.strerror}", "give the node's user the right, or free space"
        )
    detail = f"{folder} has {free / 2**30:.1f} GB left"
    if free < _MIN_FREE:
        return failure(check, detail, "free some space: a node keeps about three copies of the model")
    return warning(check, detail, "free some space soon") if free < _ENOUGH_FREE else ok(check, detail)
