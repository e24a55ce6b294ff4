"""A light release is opened if a trusted key signed each byte of it, and in no other case."""

import json
import os
import zlib

import pytest
from light_models import make_model
from light_releases import FACTS, KEY, SKELETONS, make_small_model, read_files, rehash, trust, write, write_files

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import CARD, CONFIG, MANIFEST, SIGNATURE, WEIGHTS
from fedglm.inference.release.manifest import SKELETONS as SKELETON_FILE
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.weights.limits import Limits
from fedglm.inference.weights.model import same_tensors
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "light", model=make_small_model())
    return tmp_path / "light"


def refuse(folder, reason, **options):
    with pytest.raises(InferenceError, match=reason) as caught:
        open_release(folder, **{"trust": trust()} | options)
    assert "\n" not in str(caught.value)


def test_what_was_written_is_read(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    size = write(tmp_path / "light", tokenizer=tokenizer)
    release = open_release(tmp_path / "light", trust=trust())
    model = make_model()
    assert same_tensors(release.model.tensors, model.tensors)
    assert (release.model.config, release.model.task) == (model.config, model.task)
    assert {name: zlib.decompress(one) for name, one in release.skeletons.items()} == {
        name: zlib.decompress(one) for name, one in SKELETONS.items()
    }
    assert release.manifest.facts == FACTS
    assert release.files["tokenizer.json"] == b"{}"
    assert (release.verified, release.signer) == (True, KEY.public)
    assert release.provenance == f"signed by {KEY.public.fingerprint()}"
    assert size.files == {name: len(content) for name, content in read_files(tmp_path / "light").items()}


def test_a_foreign_signer_is_refused_also_beside_a_trusted_key(folder):
    foreign = SigningKey.generate()
    refuse(folder, "whom you do not trust", trust=Trust.in_keys([foreign.public]))
    assert open_release(folder, trust=Trust.in_keys([foreign.public, KEY.public])).verified
    write_files(folder, rehash(read_files(folder), key=foreign))
    refuse(folder, "whom you do not trust")


def test_a_signature_of_something_else_is_refused_whatever_the_trust(folder):
    files = read_files(folder)
    manifest = files[MANIFEST].replace(b'"n":1000', b'"n":9999')
    assert manifest != files[MANIFEST]
    write_files(folder, files | {MANIFEST: manifest})
    refuse(folder, "is not what .* signed")
    refuse(folder, "is not what .* signed", trust=Trust.unverified())


def test_an_unsigned_release_is_opened_only_as_unverified_and_says_so(folder):
    (folder / SIGNATURE).unlink()
    refuse(folder, "not signed")
    release = open_release(folder, trust=Trust.unverified())
    assert (release.verified, release.signer) == (False, None)
    assert release.provenance == "not signed: nobody vouches for it"


def test_a_signed_release_opened_as_unverified_is_not_called_verified(folder):
    release = open_release(folder, trust=Trust.unverified())
    assert not release.verified
    assert "not verified" in release.provenance


def test_trust_in_nobody_is_no_trust():
    with pytest.raises(InferenceError, match="name the public key"):
        Trust.in_keys([])


def test_unknown_files_links_folders_and_pipes_are_refused(folder):
    for make, reason in (
        (lambda path: path.write_text("x"), "no file of a light release"),
        (lambda path: path.mkdir(), "no file of a light release"),
    ):
        make(folder / "extra")
        refuse(folder, reason)
        (folder / "extra").rmdir() if (folder / "extra").is_dir() else (folder / "extra").unlink()
    (folder / "tokenizer.json").write_text("{}")
    refuse(folder, "tokenizer.json is not in the manifest")
    (folder / "tokenizer.json").unlink()
    content = (folder / CARD).read_bytes()
    for make in (
        lambda: (folder / CARD).symlink_to(folder.parent / "elsewhere"),
        lambda: os.mkfifo(folder / CARD),
        lambda: (folder / CARD).mkdir(),
    ):
        (folder.parent / "elsewhere").write_bytes(content)
        (folder / CARD).unlink(missing_ok=True) if not (folder / CARD).is_dir() else (folder / CARD).rmdir()
        make()
        refuse(folder, "a link or no plain file")


def test_missing_files_and_folders_are_refused(folder, tmp_path):
    refuse(tmp_path / "nowhere", "no light release can be read")
    refuse(folder / CARD, "no light release can be read")
    (folder / CARD).unlink()
    refuse(folder, "README.md is missing")
    (folder / MANIFEST).unlink()
    refuse(folder, "holds no light release")


def test_a_trusted_signer_too_is_held_to_the_format(folder):
    files = read_files(folder)
    for changed, reason in (
        (files | {CONFIG: b"[]"}, "no JSON object"),
        (files | {CONFIG: b"{"}, "not JSON"),
        (files | {WEIGHTS: files[WEIGHTS][:-1]}, "header of the weights"),
        (files | {SKELETON_FILE: files[SKELETON_FILE][:-1]}, "skeletons are damaged"),
    ):
        write_files(folder, rehash(changed, key=KEY))
        refuse(folder, reason)
    write_files(folder, rehash(files, key=KEY, parameters=7))
    refuse(folder, "not the 7 parameters")
    write_files(folder, rehash(files, key=KEY, skeletons={"decode": 886}))
    refuse(folder, "another length")
    write_files(folder, rehash({name: files[name] for name in files if name != CARD}, key=KEY))
    refuse(folder, "lists no README.md")


def test_what_is_larger_than_the_limits_is_refused_before_it_is_read(folder, monkeypatch):
    refuse(folder, "at most 100 are unpacked", limits=Limits(max_parameters=100))
    monkeypatch.setattr("fedglm.inference.release.reader.read_regular", None)
    refuse(folder, "at most 1000 are read", limits=Limits(max_bytes=1000))


def test_a_newer_schema_is_named(folder):
    files = read_files(folder)
    fields = json.loads(files[MANIFEST]) | {"fedglm_schema": "fedglm-light/2"}
    blob = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    (folder / SIGNATURE).unlink()
    (folder / MANIFEST).write_bytes(blob)
    refuse(folder, "a newer fedglm", trust=Trust.unverified())
