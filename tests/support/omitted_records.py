"""Records that are left out, emptied, or replaced as a whole, of runs, of sites and of bundles for every role."""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audited_run import SITES, kept_run, make_run, small_nodes
from custodies import SERVER

from fedglm.audit.bundle.contents import MANIFEST, SIGNATURE
from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.records.proofs import prove_inclusion
from fedglm.audit.verify.verification import Verification, verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.keys.signing import PublicKey, SigningKey

STRANGER = SigningKey.generate()
CUSTODY = ("log.sqlite", "ledger.sqlite", "policy.toml", "policy.toml.sig")
OF_SERVER = ("audit/log.sqlite", "rounds.jsonl", "summary.json")
CONTEXT = "fedglm/bundle/1"

Look = Callable[[Path], Verification]


@dataclass(frozen=True)
class Omission:
    """A change after which something is absent or replaced.

    Attributes:
        name: Description of the change.
        look: Makes the change in an empty folder, and verifies the result.
    """

    name: str
    look: Look


@dataclass(frozen=True)
class Runs:
    """A run whose records are complete, and others that take their places.

    Attributes:
        run: Run of the server and of sites a, b and c.
        other: Another run of the same server, with other sites of those names.
        strange: Run of a stranger, who claims to be the server.
        old: Nodes of `run` as they were a round before its end.
    """

    run: Path
    other: Path
    strange: Path
    old: Path

    @classmethod
    def make(cls, home: Path) -> "Runs":
        """Make the runs in a folder."""
        run, other = make_run(home / "first" / "run"), make_run(home / "second" / "run")
        strange = home / "strange"
        kept_run(strange, small_nodes(strange / "nodes"), key=STRANGER)
        for folder in (run, other, strange):
            (folder / "audit" / "report.html").write_text(f"<html>{folder}</html>")
            (folder / "audit" / "report.json").write_text(json.dumps({"of": str(folder)}))
        return cls(run, other, strange, run.with_name("old"))


def key_of(folder: Path, site: str) -> PublicKey:
    """Return a site's public key."""
    return SigningKey.load(folder / "nodes" / site / "custody" / "site.key").public


def omissions(runs: Runs) -> list[Omission]:
    """Return all omissions."""
    return [*_of_run(runs), *_of_site(runs), *_of_bundles(runs), *_of_proof(runs), *_of_keys(runs)]


# --- folders


def _changed(source: Path, change: Callable[[Path], None], look: Look) -> Look:
    def changed(work: Path) -> Verification:
        shutil.copytree(source, work / "copy")
        change(work / "copy")
        return look(work / "copy")

    return changed


def _put(name: str, content: Path | bytes | None) -> Callable[[Path], None]:
    """Put a file or a folder in the place of another: nothing, an empty one, or one from elsewhere."""

    def put(folder: Path) -> None:
        path = folder / name
        was_folder = path.is_dir()
        shutil.rmtree(path) if was_folder else path.unlink()
        if isinstance(content, Path):
            shutil.copytree(content, path) if content.is_dir() else shutil.copy(content, path)
        elif content is not None:
            path.mkdir() if was_folder else path.write_bytes(content)

    return put


def _ways(name: str, runs: Runs) -> Iterator[tuple[str, Callable[[Path], None]]]:
    for how, content in _contents(name, runs).items():
        yield how, _put(name, content)


def _contents(name: str, runs: Runs) -> dict[str, Path | bytes | None]:
    """Return what may take the place of a file or folder of the run, except the same content."""
    others = {"another run's": runs.other, "a stranger's": runs.strange, "a round before": runs.old}
    replacements = {how: folder / name for how, folder in others.items() if _is_another(folder / name, runs.run / name)}
    return {"left out": None, "emptied": b"", **replacements}


def _is_another(path: Path, than: Path) -> bool:
    if than.is_dir():
        return path.is_dir()
    return path.is_file() and path.read_bytes() != than.read_bytes()


def _of_run(runs: Runs) -> Iterator[Omission]:
    places = [f"nodes/{site}{part}" for site in SITES for part in ("", "/custody")]
    files = [f"nodes/{site}/custody/{name}" for site in SITES for name in CUSTODY]
    for name in (*OF_SERVER, "audit", "nodes", *places, *files):
        for how, change in _ways(name, runs):
            yield Omission(f"run: {name} {how}", _changed(runs.run, change, verify))
    for what, of in (("another run", runs.other), ("a stranger", runs.strange)):

        def all_of_the_server(folder: Path, of: Path = of) -> None:
            for name in OF_SERVER:
                _put(name, of / name)(folder)

        yield Omission(f"run: all of the server's is of {what}", _changed(runs.run, all_of_the_server, verify))


def _of_site(runs: Runs) -> Iterator[Omission]:
    site = runs.run / "nodes" / "a"

    def alone(folder: Path) -> Verification:
        return verify(folder, keys=[key_of(runs.run, "a")])

    def against(folder: Path) -> Verification:
        return verify(folder, server=runs.run)

    for name in (*(f"custody/{name}" for name in CUSTODY), "custody"):
        for how, content in _contents(f"nodes/a/{name}", runs).items():
            if (how, name) != ("a round before", "custody"):  # which the site alone cannot know
                yield Omission(f"site: {name} {how}", _changed(site, _put(name, content), alone))
            yield Omission(f"site and server: {name} {how}", _changed(site, _put(name, content), against))
    for how, of in (("another run's", runs.other), ("a stranger's", runs.strange)):
        yield Omission(f"site and server: server {how}", lambda _, of=of: verify(site, server=of))
    for how, change in _ways("audit/log.sqlite", runs):

        def held(folder: Path) -> Verification:
            return verify(site, server=folder)

        yield Omission(f"site and server: server's log {how}", _changed(runs.run, change, held))


# --- bundles


def contents_of(bundle: Path) -> dict[str, bytes]:
    """Return the content of each file in a bundle."""
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(contents: dict[str, bytes], path: Path) -> Path:
    """Write an archive of files."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in contents.items():
            out.writestr(name, content)
    path.write_bytes(archive.getvalue())
    return path


def signed(contents: dict[str, bytes], key: SigningKey, role: str) -> dict[str, bytes]:
    """Return the files with a list of them that a key signs."""
    files = {name: content for name, content in contents.items() if name not in (MANIFEST, SIGNATURE)}
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    moment = "2027-01-04T10:00:00+00:00"
    manifest = canonical_json({"made": moment, "role": role, "key": key.public.hex, "files": listed})
    return {**files, MANIFEST: manifest, SIGNATURE: key.sign(CONTEXT, manifest).hex().encode()}


def _of_bundles(runs: Runs) -> Iterator[Omission]:
    owner = SigningKey.load(runs.run / "nodes" / "a" / "custody" / "site.key")
    for what, place, key in (("run", ".", SERVER), ("site", "nodes/a", owner)):
        for role in ("auditor", "regulator", "public") if what == "run" else ("auditor", "regulator"):
            yield from _of_bundle(f"bundle of a {what} for {role}", runs, place, role, key)


def _of_bundle(called: str, runs: Runs, place: str, role: str, key: SigningKey) -> Iterator[Omission]:
    work = runs.run.parent / "bundles"
    work.mkdir(exist_ok=True)

    def made(folder: Path, by: SigningKey) -> dict[str, bytes]:
        export_bundle(folder / place, work / "bundle.zip", role, by)
        return contents_of(work / "bundle.zip")

    original, others, strangers = made(runs.run, key), made(runs.other, key), made(runs.strange, STRANGER)

    def look(contents: dict[str, bytes], *keys: PublicKey) -> Look:
        return lambda folder: verify(packed(contents, folder / "bundle.zip"), keys=keys)

    yield Omission(f"{called}: signed by a stranger", look(signed(original, STRANGER, role)))
    yield Omission(f"{called}: a stranger's", look(strangers, key.public))
    yield Omission(f"{called}: without any log", look(signed(_without_logs(original), key, role)))
    for other in {"auditor", "regulator", "public"} - {role}:
        yield Omission(f"{called}: for {other}, by a stranger", look(signed(original, STRANGER, other)))
    for name in sorted(original.keys()):
        changes = {"left out": None, "emptied": b"", "another run's": others.get(name), "a stranger's": strangers[name]}
        for how, content in changes.items():
            if content == original[name]:
                continue
            changed = (
                {**original, name: content} if content is not None else {k: v for k, v in original.items() if k != name}
            )
            yield Omission(f"{called}: {name} {how}", look(changed))
            if name in (MANIFEST, SIGNATURE):
                continue
            yield Omission(f"{called}: {name} {how}, signed by a stranger", look(signed(changed, STRANGER, role)))
            if not name.startswith("audit/report"):  # which is the owner's word, and may be left out
                yield Omission(f"{called}: {name} {how}, signed by the owner", look(signed(changed, key, role)))


def _without_logs(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in contents.items() if "log." not in name}


# --- proofs and keys


def _of_proof(runs: Runs) -> Iterator[Omission]:
    def proof(folder: Path) -> dict[str, object]:
        return prove_inclusion(folder / "nodes" / "a" / "custody" / "log.sqlite", 4)

    def look(content: dict[str, object]) -> Look:
        def written(folder: Path) -> Verification:
            (folder / "proof.json").write_text(json.dumps(content))
            return verify(folder / "proof.json", keys=[key_of(runs.run, "a")])

        return written

    valid = proof(runs.run)
    yield Omission("proof: a stranger's", look(proof(runs.strange)))
    yield Omission("proof: empty", look({}))
    for name in valid:
        yield Omission(f"proof: {name} left out", look({k: v for k, v in valid.items() if k != name}))
        if valid[name] != proof(runs.strange)[name]:
            yield Omission(f"proof: {name} a stranger's", look({**valid, name: proof(runs.strange)[name]}))


def _of_keys(runs: Runs) -> Iterator[Omission]:
    """Yield verifications with a known key that is another's, or of records that are another's."""
    keys = {"server": SERVER.public, **{site: key_of(runs.run, site) for site in SITES}}
    for name, key in keys.items():
        yield Omission(f"keys: a stranger's for {name}", lambda _: verify(runs.run, keys=[STRANGER.public]))
        yield Omission(f"keys: all is a stranger's but that of {name}", _look_at(runs.strange, key))
        if name != "server":
            yield Omission(f"keys: all is of another run but that of {name}", _look_at(runs.other, key))


def _look_at(folder: Path, key: PublicKey) -> Look:
    return lambda _: verify(folder, keys=[key])
