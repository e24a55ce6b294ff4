"""`fedglm validate` from outside: its table, its signed file, its exit codes; and a fleet of files in one table."""

import json

import pytest
from checked_releases import change_code, make_checked_model, write_checked
from light_releases import KEY

from fedglm.inference.release.trust import Trust
from fedglm.inference.validation import validate
from fedglm.inference.validation.use import Latency, Use
from fedglm.inference.validation.validation import read_validation
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")

SERVER = KEY.public.hex
ONCE = Latency(p50_ms=1.0, p99_ms=1.0, n=20)
USE = Use(import_ms=1.0, load_ms=1.0, prompt_tokens=1, prefill=ONCE, decode=ONCE, peak_bytes=None, watts=None)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A release, one whose weights are not those of its golden answers, two devices' keys and their validations."""
    home = tmp_path_factory.mktemp("validate")
    model = make_checked_model()
    write_checked(home / "light", model)
    write_checked(home / "wrong", change_code(model), answers_of=model)
    for name in ("berlin", "rome"):
        SigningKey.create(home / f"{name}.key")
    return home


def public(home, name):
    return SigningKey.load(home / f"{name}.key").public


@pytest.fixture(scope="module")
def files(home, fedglm):
    """The validations: Berlin's passes, and has the times of a process; Rome's does not."""
    with pytest.MonkeyPatch.context() as patch:
        for name, release in (("berlin", "light"), ("rome", "wrong")):
            done = fedglm("validate", home / release, "--key", SERVER, "--sign-with", home / f"{name}.key", "--out",
                          home / f"{name}.json")  # fmt: skip
            assert done.code == (name == "rome"), done.err
            assert max(map(len, done.out.replace(str(home), "").splitlines())) <= 80
            assert ("FAILED" in done.out) == (name == "rome")
            assert "fast tokens" in done.out
            assert "P99" in done.out
            patch.setattr(validate, "measure_use", lambda *_, **__: USE)
    return [home / "berlin.json", home / "rome.json"]


def test_a_signed_file_is_written(home, files):
    read = read_validation(files[0].read_bytes(), trust=Trust.in_keys([public(home, "berlin")]))
    assert read.validation.passed
    assert read.validation.use.decode.n >= 20
    assert str(home) not in files[0].read_text()


def test_json_is_the_validation(fedglm, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(validate, "measure_use", lambda *_, **__: USE)
    done = fedglm("validate", home / "wrong", "--unverified", "--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert (told["passed"], told["verified"]) == (False, False)
    assert not (home / "validation.json").exists(), "nothing is written unsigned"


def test_a_fleet_is_one_table(fedglm, home, files):
    keys = [part for name in ("berlin", "rome") for part in ("--key", public(home, name).hex)]
    done = fedglm("validate", "--fleet", *files, *keys)
    assert done.code == 1
    assert max(map(len, done.out.replace(str(home), "").splitlines())) <= 80
    assert public(home, "berlin").fingerprint()[:9] in done.out
    assert "…" not in done.out, "no figure is cut short"
    assert "exact logits: off by" in " ".join(done.out.split())
    assert "not verified" not in done.out
    told = json.loads(fedglm("validate", "--fleet", *files, *keys, "--json").out)
    assert [each["passed"] for each in told] == [True, False]
    assert fedglm("validate", "--fleet", files[0], *keys).code == 0


def test_a_foreign_or_forged_file_of_a_fleet_fails(fedglm, home, files, tmp_path):
    done = fedglm("validate", "--fleet", files[0], "--key", public(home, "rome").hex)
    assert done.code == 1
    assert "REFUSED" in done.out
    assert "whom you do not trust" in " ".join(done.out.split())
    forged = tmp_path / "forged.json"
    forged.write_bytes(files[1].read_bytes().replace(b'"passed":false', b'"passed":true'))
    done = fedglm("validate", "--fleet", forged, files[0], "--unverified", "--json")
    assert done.code == 1
    told = json.loads(done.out)
    assert "is not what" in told[0]["error"]
    assert (told[1]["passed"], told[1]["verified"]) == (True, False)
    assert "not verified" in fedglm("validate", "--fleet", files[0], "--unverified").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("light",), "give the keys of the server with --key, or --unverified"),
        (("light", "--key", SERVER, "--unverified"), "or --unverified"),
        (("light", "wrong", "--unverified"), "one release at a time"),
        (("nowhere", "--unverified"), "holds no light release"),
        (("--fleet", "berlin.key", "--unverified", "--sign-with", "berlin.key"), "signs none"),
        (("--fleet", "none.json", "--unverified"), "none.json cannot be read"),
        (("light", "--key", "12"), "64 digits"),
        (("light", "--unverified", "--sign-with", "none.key"), "cannot read the key"),
    ],
)
def test_mistakes_are_one_line(fedglm, home, monkeypatch, arguments, said):
    monkeypatch.chdir(home)
    assert said in " ".join(fedglm("validate", *arguments).line().split())
