"""What a light release's writer writes: all or nothing, every byte counted, and a card that says what is known."""

import pytest
import yaml
from light_models import make_model
from light_releases import FACTS, KEY, SKELETONS, make_small_model, read_files, trust, write

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.release.writer import write_light_release
from fedglm.core.files import StorageError
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import CARD, Facts, Measure
from fedglm.inference.release.manifest import SKELETONS as SKELETON_FILE
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.weights.model import NumpyModel

pytestmark = pytest.mark.usefixtures("unsynced")


def card_of(folder):
    text = (folder / CARD).read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_every_byte_is_counted_also_in_the_card(tmp_path):
    size = write(tmp_path / "light")
    on_disk = {path.name: path.stat().st_size for path in (tmp_path / "light").iterdir()}
    assert size.files == on_disk
    assert size.reference_bytes == 400_000
    assert size.size_ratio == 400_000 / sum(on_disk.values())
    _, body = card_of(tmp_path / "light")
    said = body.split(" parameters in")[1]
    assert int(said.split(" bytes")[0].strip().replace(",", "")) == size.bytes
    assert float(said.split("counted:")[1].split(" times")[0]) == pytest.approx(size.size_ratio, abs=0.005)


def test_the_card_says_what_is_known_and_what_is_not(tmp_path):
    write(tmp_path / "light")
    front, body = card_of(tmp_path / "light")
    assert front == {
        "license": "apache-2.0",
        "library_name": "fedglm",
        "pipeline_tag": "text-generation",
        "tags": ["glm", "quantized"],
    }
    assert "|perplexity|3.5|3.4|3.3|1000|7|" in body
    assert "**Not measured:** latency on an ARM core." in body
    assert "supports evidence for a risk analysis" in body
    assert "(2.5, 1.0e-05)-differential privacy for each patient" in body


def test_a_card_without_privacy_or_measures_says_so(tmp_path):
    model = make_small_model()
    classifier = NumpyModel(
        tensors=model.tensors, task=model.task, config={"architectures": ["GlmForSequenceClassification"]}
    )
    write(tmp_path / "light", model=classifier, facts=Facts(name="bare"))
    front, body = card_of(tmp_path / "light")
    assert front["pipeline_tag"] == "text-classification"
    assert "without differential privacy: it can reveal training records" in body
    assert "**Not measured:** what is not in the table." in body


def test_markup_in_facts_stays_text(tmp_path):
    facts = Facts(
        name="a|b\n# <script>",
        license='x"\ntags: [evil]',
        measures=(Measure(name="[a](http://b)|", value=1.0, n=1, seed=0),),
    )
    write(tmp_path / "light", model=make_small_model(), facts=facts)
    front, body = card_of(tmp_path / "light")
    assert front["tags"] == ["glm", "quantized"]
    assert "<script>" not in body.replace("\\<", "")
    assert "# a\\|b?\\# \\<script\\>\n" in body
    assert "|\\[a\\](http://b)\\||1|" in body


def test_an_unsigned_release_has_no_signature(tmp_path):
    size = write(tmp_path / "light", model=make_small_model(), key=None)
    assert "manifest.sig" not in size.files
    with pytest.raises(InferenceError, match="not signed"):
        open_release(tmp_path / "light", trust=trust())
    assert open_release(tmp_path / "light", trust=Trust.unverified()).signer is None


def test_an_earlier_release_is_replaced_and_anything_else_refused(tmp_path):
    write(tmp_path / "light", model=make_small_model())
    first = read_files(tmp_path / "light")
    write(tmp_path / "light", model=make_model())
    assert read_files(tmp_path / "light") != first
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InferenceError, match="something else"):
        write(other, model=make_small_model())
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "light")
    with pytest.raises(InferenceError, match="something else"):
        write(link, model=make_small_model())
    assert [path.name for path in other.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["light", "link", "other"]


def test_a_failure_leaves_the_earlier_release(tmp_path, monkeypatch):
    write(tmp_path / "light", model=make_small_model())
    before = read_files(tmp_path / "light")

    def fail(_path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedglm.inference.release.folder.sync_folder", fail)
    with pytest.raises(StorageError, match="disk is full"):
        write(tmp_path / "light", model=make_model())
    assert read_files(tmp_path / "light") == before
    assert [path.name for path in tmp_path.iterdir()] == ["light"]


def test_what_would_not_be_read_back_is_not_written(tmp_path):
    model = make_small_model()
    tuples = NumpyModel(tensors=model.tensors, task=model.task, config={"architectures": ("GlmForCausalLM",)})
    with pytest.raises(ModelError, match="plain JSON"):
        write(tmp_path / "light", model=tuples)
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
        write(tmp_path / "light", model=model, tokenizer=tmp_path)
    with pytest.raises(InferenceError, match="no compressed graph"):
        write_light_release(
            tmp_path / "light",
            model,
            skeletons={"decode": b"plain"},
            tokenizer=None,
            facts=FACTS,
            reference_parameters=1,
            signing_key=KEY,
        )
    assert not (tmp_path / "light").exists()


def test_like_skeletons_cost_little_more_than_one(tmp_path):
    def size(skeletons):
        return write_light_release(
            tmp_path / "light",
            make_small_model(),
            skeletons=skeletons,
            tokenizer=None,
            facts=FACTS,
            reference_parameters=1,
            signing_key=None,
        ).files[SKELETON_FILE]

    assert size(SKELETONS) < size({"decode": SKELETONS["decode"]}) + 20
