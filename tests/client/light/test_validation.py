"""A light release tried on a node, and used there: with the node's runtime, its signature checked."""

import json
import shutil

import pytest
from checked_releases import write_checked
from light_federation import validation_of
from light_releases import FACTS, KEY, trust
from site_folders import make_project, make_site
from used_releases import CLASSES, write_used_release

from fedglm.client.light.shelf import LightShelf, UnfitError, hash_manifest
from fedglm.client.light.validation import validate
from fedglm.inference.release.archive import pack_release
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")


def test_a_release_with_golden_answers_is_validated_by_a_process_of_its_own_and_kept(tmp_path):
    write_checked(tmp_path / "r", facts=FACTS.model_copy(update={"run": {"version": 1}}))
    release = open_release(tmp_path / "r", trust=trust())
    shelf = LightShelf(tmp_path / "light", [KEY.public])
    shelf.take(pack_release(release), base=None)
    found = shelf.read_validation(hash_manifest(release))
    assert found.passed, found.checks
    assert found.verified
    assert {"signature and hashes", "exact logits", "exact tokens", "fast logits", "fast tokens"} <= {
        check.name for check in found.checks
    }
    assert found.use.prefill.p50_ms > 0
    assert found.use.decode.n >= 1
    assert found.use.peak_bytes > 25e6
    assert str(tmp_path) not in found.model_dump_json()


def test_logits_that_are_not_finite_do_not_pass_and_the_release_is_not_kept(tmp_path):
    release = open_release(write_used_release(tmp_path / "r", KEY, fill=float("inf")), trust=trust())
    shelf = LightShelf(tmp_path / "light", [KEY.public])
    with pytest.raises(UnfitError, match="not all finite"):
        shelf.take(pack_release(release), base=None)
    assert shelf.find_newest() is None


def test_one_that_is_not_validated_in_time_does_not_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("fedglm.client.light.validation.LIMIT_S", 0.01)
    found = validate(open_release(write_used_release(tmp_path / "r", KEY), trust=trust()))
    assert found.first_failure == "process: it took more than 0.01 s, and was ended"


def test_without_onnxruntime_nobody_knows_and_the_site_s_log_says_so(tmp_path, monkeypatch, caplog):
    release = open_release(write_used_release(tmp_path / "r", KEY), trust=trust())
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert validate(release) is None
    assert "pip install 'fedglm[edge]'" in caplog.text


def test_the_site_predicts_by_its_newest_release_alone(fedglm, tmp_path):
    project = make_project(tmp_path)
    site = make_site(tmp_path, project, data={"source": "breast-cancer", "share": "0/2"})
    rows = tmp_path / "rows.csv"
    rows.write_text("age,heat\n30,36.6\n70,40.1\n")
    assert "holds no model yet" in fedglm("client", "predict", rows, "-C", site.folder).line()
    keys = [project.signing_key.public]
    # That a release is tried before it is kept is proven above.
    shelves = {3: LightShelf(site.state / "light", keys, check=validation_of), 12: site.light_shelf()}
    for version, shelf in shelves.items():
        release = write_used_release(tmp_path / f"r{version}", project.signing_key, version=version)
        shelf.take(pack_release(open_release(release, trust=Trust.in_keys(keys))), base=None)
    assert site.light_shelf().find_newest().name == "0000000012"
    done = fedglm("client", "predict", rows, "-C", site.folder)
    assert done.code == 0, done.err
    predicted = [json.loads(line) for line in done.out.splitlines()]
    assert [row["heat"] for row in predicted] == ["36.6", "40.1"]
    assert all(row["probabilities"].keys() == set(CLASSES) for row in predicted)
    expected = fedglm("predict", release, rows)
    assert done.out == expected.out
    # What its server did not sign is not used, even where somebody put it there.
    foreign = write_used_release(tmp_path / "foreign", SigningKey.generate(), version=13)
    shutil.copytree(foreign, site.state / "light" / "0000000013")
    assert "signed by" in fedglm("client", "predict", rows, "-C", site.folder).line()
