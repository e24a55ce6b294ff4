"""`fedglm generate` from outside: what it prints, as it comes and as JSON; standard input; mistakes."""

import io
import re
import subprocess

import pytest
from light_process import light_command, pass_for_light
from saved_models import save_model

from fedglm.autoglm.models.opening import open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("language", tmp_path_factory.mktemp("models") / "language")


def test_what_is_added_is_printed(fedglm, model):
    done = fedglm("generate", model, "The assert", "--max-tokens", "12")
    assert (done.code, done.err) == (0, "")
    assert done.out == open_model(model).generate("The assert", max_length=12) + "\n"


def test_json_is_an_object_of_text_and_tokens(fedglm, model):
    result = fedglm("generate", model, "The assert", "--max-tokens", "12", "--json").json
    (answer,) = open_model(model).answer(["The assert"], 12)
    assert result == {"text": answer.text, "tokens": list(answer.tokens), "stop": "max-tokens"}
    assert len(result["tokens"]) == 12


def test_drawn_tokens_repeat_by_their_seed(fedglm, model):
    options = ("--max-tokens", "12", "--temperature", "1.5", "--top-k", "40", "--top-p", "0.95", "--json")
    first, again, other = (fedglm("generate", model, "x", *options, "--seed", seed).json for seed in (3, 3, 4))
    assert first == again != other


def test_standard_input_is_continued(fedglm, model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The assert\n"))
    assert fedglm("generate", model, "-", "--max-tokens", "12").out == (
        fedglm("generate", model, "The assert", "--max-tokens", "12").out
    )


def test_pieces_are_printed_as_they_come(model, tmp_path):
    """The first piece is there while the model, which is asked for far more than that, is still at work."""
    command, env = light_command("generate", pass_for_light(model, tmp_path / "light"), "x", "--max-tokens", "100")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        first = process.stdout.read(1)
        was_running = process.poll() is None
        rest = process.stdout.read()
        assert process.wait() == 0, process.stderr.read()
    assert was_running
    assert (first + rest).decode() == open_model(model).generate("x", max_length=100) + "\n"


def test_a_model_that_is_full_says_so(fedglm, model):
    done = fedglm("generate", model, "x" * 1010, "--max-tokens", "50")
    assert done.code == 0
    assert done.err == "stopped: the model takes 1024 tokens, the text included\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x" * 1024,), "the text has 1025 tokens, and the model takes 1023 at most"),
        (("x", "--top-p", "0.5"), "give a temperature above 0 too"),
        (("x", "--temperature", "1", "--top-p", "2"), "top_p = 2.0"),
        (("x", "--max-tokens", "0"), "0 is not in the range"),
        (("\udcff",), "half a character"),
    ],
)
def test_mistakes_are_one_line(fedglm, model, arguments, said):
    assert said in fedglm("generate", model, *arguments).line()


def test_a_classifier_is_refused_before_torch_is_asked_for(fedglm, tmp_path):
    folder = save_model("table", tmp_path / "model")
    line = fedglm("generate", folder, "x").line()
    assert re.fullmatch(r"fedglm: .*model classifies and generates no text: fedglm predict .*", line)
