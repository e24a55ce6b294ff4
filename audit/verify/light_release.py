"""Verifies the light release of a run: what lies in its folder against the server's log."""

from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.light_files import LightFiles
from fedglm.audit.records.log_records import LogRecord
from fedglm.audit.records.run_files import RunFiles
from fedglm.inference.release.manifest import MANIFEST, SIGNATURE
from fedglm.run_folder.names import LIGHT

NAME = "light release"
"""Name of the check."""

_IN_BUNDLE = {MANIFEST, SIGNATURE}


def check_light_release(record: LogRecord, files: RunFiles) -> list[Check]:
    """Check the light release in a run's folder against the log: its manifest, and by that and the signature each file.

    A folder that is to be verified must hold the last release that the log shows, and no other; a bundle holds only its
    manifest and signature. A run without any has no such check.

    Args:
        record: The server's log.
        files: Files of the run.
    """
    entries = record.rare_entries("light")
    if (fault := _find_log_fault(record)) is not None:
        return [_make_check(False, fault)]
    if not files.is_requested or not (entries or files.light):
        return []
    released = [entry for entry in entries if entry["manifest"] is not None]
    last = released[-1] if released else None
    is_under_way = not record.rare_entries("finished")
    if files.light is None or files.light.missing == (MANIFEST,):
        if last is None:
            return [_make_check(True, "none was released")]
        return [_make_check(None, f"release {last['version']} of entry {last['number']} is not here", missing=True)]
    if (fault := _find_folder_fault(record, files.light)) is not None:
        return [_make_check(False, f"{LIGHT}/: {fault}")]
    if last is None or files.light.manifest != last["manifest"]:
        return [_compare_with_log(files.light, last, is_under_way=is_under_way)]
    if (files.light.version, files.light.bytes) != (last["version"], last["bytes"]):
        return [_make_check(False, f"entry {last['number']}: it names another version or size than the release has")]
    if missing := set(files.light.missing) - _IN_BUNDLE if not files.is_bundle else set():
        return [_make_check(None, f"{LIGHT}/ lacks {', '.join(sorted(missing))}", missing=True)]
    detail = (
        f"version {last['version']}, {last['bytes']:,} bytes, signed by the server, as entry {last['number']} shows"
    )
    left_out = "; a bundle holds its manifest, and not its files" if files.is_bundle else ", each file by its hash"
    return [_make_check(True, f"{detail}{left_out}; {_describe_holders(record, last)}")]


def _make_check(passed: bool | None, detail: str, *, missing: bool = False) -> Check:
    return Check(subject="server", name=NAME, passed=passed, detail=detail, missing=missing)


def _find_log_fault(record: LogRecord) -> str | None:
    """Find an entry whose release is older than one before it, or that a site holds and the run did not make.

    Sites may hold a release of an earlier run of the same server, which has a lower version than all of this one.
    """
    made = dict[int, str]()
    for entry in record.rare_entries("light"):
        number, version, manifest = entry["number"], entry["version"], entry["manifest"]
        if (version is None) != (manifest is None):
            return f"entry {number}: a release has a version and a manifest, or neither"
        if version is not None and made.get(version) != manifest and version <= max(made, default=-1):
            return f"entry {number}: release {version} follows release {max(made)}"
        if version is not None:
            made[version] = manifest
    for entry in record.rare_entries("handed"):
        version = entry["version"]
        if made.get(version, "") != entry["manifest"] and (version in made or version > min(made, default=version)):
            return f"entry {entry['number']}: {entry['site']} holds a release {version} that the log does not show"
    return None


def _find_folder_fault(record: LogRecord, light: LightFiles) -> str | None:
    """Find what is wrong with a release, whatever the log shows of it."""
    if light.fault:
        return light.fault
    if light.signer is None:
        return "the release is not signed"
    if light.signer not in record.keys:
        return f"the release is signed by {light.signer.fingerprint()}, which is not the server"
    return None


def _compare_with_log(light: LightFiles, last: dict[str, Any] | None, *, is_under_way: bool) -> Check:
    """Check a release of the server's that is not the last one of its log."""
    shown = "no release" if last is None else f"release {last['version']} of entry {last['number']}"
    is_newer = light.version is not None and (last is None or light.version > last["version"])
    if is_under_way and is_newer:  # the folder is written before the entry
        return _make_check(None, f"the log shows {shown}, and the run is under way: {LIGHT}/ holds a newer one")
    version = "of no version" if light.version is None else f"{light.version}, another one"
    return _make_check(False, f"the log shows {shown} last, and {LIGHT}/ holds a release {version}")


def _describe_holders(record: LogRecord, last: dict[str, Any]) -> str:
    holders = {e["site"] for e in record.rare_entries("handed") if e["manifest"] == last["manifest"]}
    admitted = {entry["site"] for entry in record.rare_entries("admitted")}
    return f"{len(holders & admitted)} of {len(admitted)} sites say that they hold it"
