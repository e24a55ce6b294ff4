"""Real releases, opened for threads and as tiers: by a device's file, by what is measured, and with torch."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from device_law import make_table, write_device
from light_releases import KEY
from saved_models import save_model
from used_releases import write_used_release

from fedglm.autoglm.models.opening import open_model
from fedglm.inference.batching.settings import BatchingSettings
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.model_inputs import make_inputs
from fedglm.inference.model import LiteModel
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS
from fedglm.inference.runtime.phased_session import open_session
from fedglm.inference.tiered_model import TieredModel

ROWS = [{"age": age, "heat": 36 + age / 20} for age in range(20, 60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    write_used_release(folder / "table", KEY)
    write_used_release(folder / "other", KEY, fill=0.5)
    write_used_release(folder / "language", KEY, kind="language")
    write_device(folder / "edge.json")
    return folder


def labels(predictions):
    return [each.label for each in predictions]


def probabilities(predictions):
    return np.array([[*each.probabilities.values()] for each in predictions])


def test_a_release_serves_threads_by_the_devices_file(folder):
    alone = LiteModel.from_pretrained(folder / "table").predict(ROWS)
    options = {"batching": True, "device": folder / "edge.json", "cache_bytes": 0}
    with LiteModel.from_pretrained(folder / "table", **options) as model, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: model.predict([row])[0], ROWS))
        assert model.info()["batching"]["answered"] == len(ROWS)
        config = open_release(folder / "table", trust=Trust.unverified()).model.config
        length = model.inputs.task.length
        assert model.latency_ms() == make_table().predict(config, "int4", past=length).prefill_ms
    # Activations in INT8 round otherwise in a batch, by a step of 1/127 here and there.
    assert probabilities(found) == pytest.approx(probabilities(alone), abs=0.02)


def open_exact(folder, **options):
    """A LiteModel that rounds no activations, so that texts differ by the rounding of float32 alone."""
    release = open_release(folder, trust=Trust.unverified())
    model = release.model
    session = open_session(release.skeletons, model.tensors, model.config, accuracy_level=EXACT_ACTIVATIONS)
    return LiteModel(session, make_inputs(release.files, model.config), facts={}, **options)


def test_texts_of_a_release_in_int4_are_those_written_alone(folder):
    begin = "An instruction that all begin with: "
    texts = [f"{begin}{'abc' * number}" for number in range(1, 9)]
    plain = open_exact(folder / "language", cache_bytes=0)
    alone = [plain.generate(text, 12) for text in texts]
    with open_exact(folder / "language", batching=BatchingSettings(max_batch=4)) as model:
        assert model.generate(texts, 12) == alone
        assert ["".join(model.stream(text + " ", 12)) for text in texts] == [
            plain.generate(text + " ", 12) for text in texts
        ]
        assert model.info()["kept"]["tokens_reused"] > 8 * len(begin) / 2
        assert max(model.info()["batching"]["batches"]) <= 4


@pytest.mark.parametrize("kind", ["language", "table"])
def test_a_model_of_torch_serves_threads_too(kind, tmp_path):
    plain = open_model(save_model(kind, tmp_path / kind), cache_bytes=0)
    with open_model(tmp_path / kind, batching=True) as model, ThreadPoolExecutor(6) as pool:
        if kind == "table":
            found = list(pool.map(lambda row: model.predict([row])[0], ROWS))
            assert labels(found) == labels(plain.predict(ROWS))
            return
        texts = [f"some words and then {'xyz' * number}" for number in range(6)]
        found = list(pool.map(lambda text: model.generate(text, 6), texts))
        assert found == [plain.generate(text, 6) for text in texts]
        assert model.generate([text + "?" for text in texts], 6) == [plain.generate(text + "?", 6) for text in texts]


def test_tiers_are_opened_by_their_folders_and_expected_by_the_devices_file(folder):
    paths = [folder / "table", folder / "other"]
    with TieredModel.open(paths, budget_ms=1000, device=folder / "edge.json") as model:
        answer = model.predict(ROWS)
        assert answer.tier == str(folder / "table")
        assert labels(answer.answers) == labels(LiteModel.from_pretrained(folder / "table").predict(ROWS))
        assert list(model.info()["tiers"]) == [str(path) for path in paths]
    with pytest.raises(InferenceError, match="named twice"):
        TieredModel.open([folder / "table", folder / "table"], budget_ms=1, batching=True)
    with pytest.raises(InferenceError, match="no light release"):
        TieredModel.open([folder / "table", folder / "none"], budget_ms=1, batching=True)
    with pytest.raises(InferenceError, match="not of the same task"):
        TieredModel.open([folder / "table", folder / "language"], budget_ms=1)
