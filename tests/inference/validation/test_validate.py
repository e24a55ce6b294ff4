"""A release is validated where it is used: what was changed is not run, what computes wrongly is found."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checked_releases import CODES, PROMPTS, change_code, make_checked_model, write_checked
from light_releases import KEY, read_files, rehash, trust, write_files

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.golden import unpack_golden
from fedglm.inference.release.manifest import MANIFEST, WEIGHTS, hash_bytes
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.validation import measured_process
from fedglm.inference.validation import validate as module
from fedglm.inference.validation.use import Latency, Use
from fedglm.inference.validation.validate import validate_release
from fedglm.privacy.keys.signing import SigningKey

pytestmark = pytest.mark.usefixtures("unsynced")

CHECKS = ("signature and hashes", "exact logits", "exact tokens", "fast logits", "fast tokens")
ONCE = Latency(p50_ms=1.0, p99_ms=1.0, n=1)
USE = Use(import_ms=1.0, load_ms=1.0, prompt_tokens=1, prefill=ONCE, decode=None, peak_bytes=None, watts=None)


@pytest.fixture
def unmeasured(monkeypatch):
    """The process that is measured takes a second, and one test looks at it."""
    monkeypatch.setattr(module, "measure_use", lambda *_, **__: USE)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "light"
    write_checked(folder)
    return folder


@pytest.fixture
def folder(release, tmp_path):
    """A copy of the release, to be changed."""
    return Path(shutil.copytree(release, tmp_path / "light"))


def results(validation):
    return {check.name: check.passed for check in validation.checks}


def test_a_whole_release_passes_and_is_measured(folder):
    made = validate_release(folder, trust=trust())
    assert results(made) == dict.fromkeys(CHECKS, True), made.checks
    assert made.passed
    assert made.verified
    assert made.signer == KEY.public.hex
    assert made.manifest_sha256 == hash_bytes((folder / MANIFEST).read_bytes())
    use = made.use
    assert 0 < use.decode.p50_ms <= use.decode.p99_ms
    assert 20 <= use.decode.n <= 200
    assert use.prompt_tokens == 64
    # numpy and ONNX Runtime alone take 30 MB; this process has torch, whose peak must not count.
    assert 25e6 < use.peak_bytes < 150e6
    assert use.import_ms > 0
    told = made.model_dump_json()
    assert str(folder.parent) not in told


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ({"low": -1, "high": 1, "block": 1000}, "int4"),
        ({"low": -128, "high": 127, "block": 128}, "int8"),
        (CODES, "fp32"),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_every_format_passes(codes, kind, tmp_path):
    write_checked(tmp_path / "light", make_checked_model(codes=codes), kind=kind)
    made = validate_release(tmp_path / "light", trust=trust())
    assert results(made) == dict.fromkeys(CHECKS, True), made.checks


@pytest.mark.usefixtures("unmeasured")
def test_a_classifier_passes(tmp_path):
    write_checked(tmp_path / "light", make_checked_model("text-classification"))
    made = validate_release(tmp_path / "light", trust=trust())
    assert results(made) == dict.fromkeys(CHECKS, True), made.checks


@pytest.mark.usefixtures("unmeasured")
def test_one_other_code_of_a_signed_release_is_found(tmp_path):
    model = make_checked_model()
    write_checked(tmp_path / "light", change_code(model), answers_of=model)
    made = validate_release(tmp_path / "light", trust=trust())
    assert results(made)["signature and hashes"] is True
    assert results(made)["exact logits"] is False, made.checks
    assert not made.passed


@pytest.mark.usefixtures("unmeasured")
def test_other_tokens_are_found(folder, monkeypatch):
    """Logits that fit beside tokens that do not, as a graph gives whose cache is wrong."""
    golden = unpack_golden(open_release(folder, trust=trust()).manifest.golden)
    other = [
        type(one)(
            prompt=one.prompt,
            tokens=((one.tokens[0] + 7) % 253, *one.tokens[1:]),
            units=one.units,
            exponent=one.exponent,
        )
        for one in golden
    ]
    monkeypatch.setattr(module, "unpack_golden", lambda _: other)
    made = results(validate_release(folder, trust=trust()))
    assert (made["exact logits"], made["exact tokens"]) == (True, False)


class Degraded:
    """A session whose logits are off by a share of their scale."""

    def __init__(self, session, share):
        self._session, self._share, self._random = session, share, np.random.default_rng(0)

    def run(self, ids, cache=None):
        logits, cache = self._session.run(ids, cache)
        noise = self._random.normal(0, self._share * np.sqrt(np.mean(logits**2)), logits.shape)
        return (logits + noise).astype(np.float32), cache


@pytest.mark.parametrize("share", [0.15, 1.0])
@pytest.mark.usefixtures("unmeasured")
def test_a_kernel_that_computes_wrongly_is_found(share, folder, monkeypatch):
    """The exact one is right and that with activations in INT8 is not, whose 9 roundings by 32 may be off by 3.9 %."""

    def degrade(*args, accuracy_level, **options):
        session = open_session(*args, accuracy_level=accuracy_level, **options)
        return session if accuracy_level == 0 else Degraded(session, share)

    monkeypatch.setattr("fedglm.inference.validation.checks.open_session", degrade)
    made = results(validate_release(folder, trust=trust()))
    assert made["exact logits"] is True
    assert made["fast logits"] is False
    assert made["fast tokens"] is (share < 1)


@pytest.mark.usefixtures("unmeasured")
def test_a_kernel_that_gives_no_numbers_is_found(folder, monkeypatch):
    """Also where its later answers are numbers."""

    class Broken(Degraded):
        def run(self, ids, cache=None):
            logits, cache = super().run(ids, cache)
            self._share, share = 0.0, self._share
            return logits * np.float32(np.nan) if share else logits, cache

    monkeypatch.setattr(
        "fedglm.inference.validation.checks.open_session",
        lambda *args, **options: Broken(open_session(*args, **options), 1),
    )
    made = results(validate_release(folder, trust=trust()))
    assert {name for name, passed in made.items() if not passed} == set(CHECKS[1:])


def test_a_relative_folder_leaves_the_reason_readable(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "README.md").unlink()
    made = validate_release(".", trust=trust())
    assert made.checks[0].detail.startswith("README.md is missing")


def refuse(folder, reason):
    made = validate_release(folder, trust=trust())
    assert results(made) == {"signature and hashes": False}
    assert reason in made.checks[0].detail
    assert not made.passed
    assert not made.verified
    assert made.use is None
    assert made.signer is None
    assert str(folder.parent) not in made.model_dump_json()


def test_a_tampered_release_is_not_run(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    refuse(folder, "its hash is not that of the manifest")


def test_a_changed_weight_whose_hash_a_foreign_key_signed_is_not_run(folder, tmp_path):
    write_checked(tmp_path / "other", change_code(make_checked_model()))
    changed = read_files(folder) | {WEIGHTS: (tmp_path / "other" / WEIGHTS).read_bytes()}
    write_files(folder, rehash(changed, key=SigningKey.generate()))
    refuse(folder, "whom you do not trust")
    write_files(folder, rehash(changed))
    refuse(folder, "the release is not signed")


@pytest.mark.usefixtures("unmeasured")
def test_an_unverified_release_is_run_and_the_result_says_so(folder):
    made = validate_release(folder, trust=Trust.unverified())
    assert made.passed
    assert not made.verified
    assert results(made)["signature and hashes"] is None
    assert "not verified" in made.checks[0].detail


@pytest.mark.usefixtures("unmeasured")
def test_a_release_without_golden_answers_says_so(folder):
    write_checked(folder, prompts=[])
    made = validate_release(folder, trust=trust())
    assert results(made) == {"signature and hashes": True, "exact logits": None, "finite logits": True}
    assert made.passed


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.usefixtures("unmeasured")
def test_without_golden_answers_logits_must_be_numbers_and_the_same_again(folder, monkeypatch, share):
    write_checked(folder, prompts=[])

    class Broken(Degraded):
        max_length, vocab_size = 64, 250

        def run(self, ids, cache=None):
            logits, cache = super().run(ids, cache)
            return logits if self._share else logits * np.float32(np.inf), cache

    monkeypatch.setattr(
        "fedglm.inference.validation.checks.open_session",
        lambda *args, **options: Broken(open_session(*args, **options), share),
    )
    made = validate_release(folder, trust=trust())
    assert results(made)["finite logits"] is False
    assert made.checks[-1].detail.endswith("differ" if share else "are not all finite")


def test_a_slow_device_is_measured_by_fewer_runs(monkeypatch, capsys, folder):
    """So that a validation ends in time."""

    class Slow:
        max_length, vocab_size = 64, 10

        def run(self, *_):
            time.sleep(0.02)
            return np.zeros((1, 1, 10), np.float32), SimpleNamespace(length=1)

    opened = SimpleNamespace(session=Slow(), inputs=SimpleNamespace(task=SimpleNamespace(is_generative=True)))
    monkeypatch.setattr("fedglm.inference.opening.open_light", lambda *_, **__: opened)
    monkeypatch.setattr(measured_process, "_MOST_SECONDS", 0.05)
    measured_process.main(folder, hash_bytes((folder / MANIFEST).read_bytes()), 1)
    figures = json.loads(capsys.readouterr().out)
    assert [len(figures[name]) for name in ("prefill_ms", "decode_ms")] == [3, 3]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fedglm.inference.errors.InferenceError: the graph is none", "the graph is none"),
        ("OSError: [Errno 2] No such file: '/home/ann/x'", "OSError"),
    ],
)
def test_why_a_model_cannot_be_used_names_no_path_of_the_machine(folder, monkeypatch, line, told):
    failed = subprocess.CompletedProcess([], 1, "", f"Traceback\n{line}\n")
    monkeypatch.setattr("fedglm.inference.validation.use.subprocess.run", lambda *_, **__: failed)
    (check,) = [check for check in validate_release(folder, trust=trust()).checks if check.name == "use"]
    assert check.passed is False
    assert told in check.detail
    assert "ann" not in check.detail


@pytest.mark.usefixtures("unmeasured")
def test_answers_of_another_vocabulary_are_a_failed_check(folder, monkeypatch):
    golden = unpack_golden(open_release(folder, trust=trust()).manifest.golden)
    foreign = type(golden[0])(prompt=(60_000,), tokens=(1,), units=(1,), exponent=0)
    monkeypatch.setattr(module, "unpack_golden", lambda _: (foreign,))
    made = validate_release(folder, trust=trust())
    assert results(made)["exact logits"] is False
    assert "60000 is not in the vocabulary" in made.checks[1].detail


def test_a_folder_without_a_release_is_a_mistake(tmp_path):
    with pytest.raises(InferenceError, match="holds no light release"):
        validate_release(tmp_path, trust=trust())


def test_a_release_that_is_replaced_meanwhile_is_not_measured(folder, monkeypatch):
    monkeypatch.setattr(module, "hash_bytes", lambda _: "x" * 43)
    made = validate_release(folder, trust=trust())
    assert results(made)["use"] is False
    assert "replaced while it was validated" in made.checks[-1].detail


def test_golden_answers_cost_what_is_said(tmp_path):
    """Three prompts of eight bytes: 109 bytes, 137 in base85, 12 for the key; the card counts them."""
    with_answers = write_checked(tmp_path / "light")
    without = write_checked(tmp_path / "plain", prompts=[])
    assert with_answers.files[MANIFEST] - without.files[MANIFEST] == 137 + len('"golden":"",')
    golden = unpack_golden(open_release(tmp_path / "light", trust=trust()).manifest.golden)
    assert [list(one.prompt) for one in golden] == [each[:8] for each in PROMPTS]


def test_a_release_is_validated_without_torch(folder):
    code = f"""
import sys
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation import validate
from fedglm.inference.validation.use import Use
from fedglm.inference.validation.validate import validate_release
validate.measure_use = lambda *_, **__: Use.model_validate_json({USE.model_dump_json()!r})  # a process of its own
from fedglm.privacy.keys.signing import PublicKey
made = validate_release({str(folder)!r}, trust=Trust.in_keys([PublicKey.from_hex({KEY.public.hex!r})]))
heavy = {{"torch", "transformers", "onnx", "numba"}}
print(made.passed, sorted(heavy & {{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True []\n"), done.stderr
