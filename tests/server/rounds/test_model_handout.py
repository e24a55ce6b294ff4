"""The model that a run ends with, on its way to the sites: rebuilt there, kept, verified, and recorded by both."""

import json
import shutil

import numpy as np
import pytest
from audited_run import kept_run
from custodies import SERVER, custody
from fake_grid import FEDERATED, answering, federate
from light_federation import entries, log_of
from tiny_federation import TASK, tiny_node
from transformers import AutoModelForSequenceClassification, GlmConfig, GlmForSequenceClassification

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.autoglm.models.lora import attach_lora
from fedglm.autoglm.models.parameters import to_vector
from fedglm.client.models.shelf import ModelShelf, ModelShelfError
from fedglm.compression.downlink import round_to_grid, vector_sha256
from fedglm.compression.settings import DownlinkSettings
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.messages import MODEL, RECORD
from fedglm.protocol.model_manifest import ModelManifest, hash_text

pytestmark = pytest.mark.usefixtures("unsynced")


def glm(*, lora=False):
    config = GlmConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, head_dim=4,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=2, use_cache=False,
    )  # fmt: skip
    module = GlmForSequenceClassification(config)
    return FederatedModel(
        attach_lora(module, rank=2, alpha=4, classifier=True) if lora else module, TASK, DownlinkSettings()
    )


class Sites:
    """Sites a and b with one model, and the models that they keep."""

    def __init__(self, folder, model):
        self.folder, self.model, self.sizes = folder, model, []
        self.shelves = {name: ModelShelf(folder / "models" / name, [SERVER.public]) for name in "ab"}

    def run(self, name="run", *, act=lambda _site, _message, answer: answer(), rounds=1, **changes):
        run = self.folder / name
        keys = {site: custody(run / "nodes" / site / "custody").key for site in "ab"}
        nodes = {10 - i: self._node(run, site, i, keys[site], act) for i, site in enumerate("ab")}
        self.coordinator = kept_run(
            run, nodes, mechanism=None, rounds=rounds, sites={site: key.public for site, key in keys.items()},
            layout=self.model.layout, initial=self.model.initial, gives_model=True, **changes,
        )  # fmt: skip
        return run

    def _node(self, run, site, number, key, act):
        node = tiny_node(run / "nodes", site, data_seed=number, rows=20, model=self.model)
        answer = answering(node, key=key, models=self.shelves[site])

        def reply(message):
            if message.metadata.message_type != "query.model":
                return answer(message)
            self.sizes.append((site, len(message.content[RECORD][MODEL])))
            return act(site, message, lambda: answer(message))

        return reply


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    sites = Sites(tmp_path_factory.mktemp("given"), glm())
    return sites, sites.run(guarantee=(3.0, 1e-5))


def test_each_site_holds_the_bits_that_the_server_signed_and_both_logs_say_so(finished):
    sites, run = finished
    sha256 = sites.coordinator.model_sha256
    for name, shelf in sites.shelves.items():
        held = shelf.open_newest()
        shelf.verify(held)
        assert (held.manifest.model_sha256, held.manifest.name, held.manifest.rounds) == (sha256, "run", 1)
        assert (held.manifest.epsilon, held.manifest.delta, held.manifest.value) == (3.0, 1e-5, None)
        loaded = AutoModelForSequenceClassification.from_pretrained(held.folder)
        assert vector_sha256(to_vector(loaded)) == sha256
        assert json.loads((held.folder / "task.json").read_text())["labels"] == ["low", "high"]
        assert not (held.folder / "vector.f32").exists()
        (entry,) = entries(run / "nodes" / name / "custody" / "log.sqlite", "model")
        given = [each for each in entries(log_of(run), "given") if each["site"] == name]
        text = json.loads((held.folder / "release.json").read_text())["manifest"]
        assert [(each["model"], each["manifest"]) for each in (entry, *given)] == [(sha256, hash_text(text))] * 2
    (run / "done.json").write_text(json.dumps({"model_sha256": sha256, "rounds": 1}))
    assert select_failed(verify(run).checks) == []


def test_a_site_finds_the_parameters_that_a_later_run_starts_from(finished):
    sites, _ = finished
    sha256, layout = sites.coordinator.model_sha256, sites.model.layout.sha256
    shelf = sites.shelves["a"]
    assert np.array_equal(shelf.find_vector(sha256, layout), sites.coordinator.vector)
    assert shelf.find_vector("0" * 64, layout) is None
    assert shelf.find_vector(sha256, "0" * 64) is None


def test_a_site_without_them_gets_them_from_the_server(tmp_path):
    """Version 0 is not what the recipe makes there."""
    started = FEDERATED.starting_from(round_to_grid(FEDERATED.initial + np.float32(0.5), "fp16"))
    coordinator, grid, _ = federate(tmp_path, initial=started.initial)
    assert [row["nodes_accepted"] for row in coordinator.rows] == [3, 3, 3]
    known = {10 - i: answering(tiny_node(tmp_path / "known", name, data_seed=i, rows=10 * (i + 1), model=started))
             for i, name in enumerate("abc")}  # fmt: skip
    other, known_grid, _ = federate(tmp_path / "other", known, initial=started.initial)
    assert other.model_sha256 == coordinator.model_sha256
    assert len(known_grid.sent) < len(grid.sent), "who has them needs no snapshot"


@pytest.mark.parametrize("change", ["weights", "task.json", "release.json"])
def test_a_bit_that_changed_is_found(finished, tmp_path, change):
    sites, _ = finished
    shutil.copytree(sites.folder / "models" / "a", tmp_path / "models")
    shelf = ModelShelf(tmp_path / "models", [SERVER.public])
    folder = shelf.open_newest().folder
    if change == "release.json":  # another model under the same signature
        release = json.loads((folder / change).read_text())
        content = json.loads(release["manifest"]) | {"epsilon": 1.0}
        (folder / change).write_text(json.dumps(release | {"manifest": canonical_json(content).decode()}))
        with pytest.raises(ModelShelfError, match="is not what the server released"):
            shelf.open_newest()
        return
    path = folder / ("model.safetensors" if change == "weights" else change)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelShelfError, match=path.name):
        shelf.verify(shelf.open_newest())


def test_another_server_s_model_is_not_believed(finished):
    sites, _ = finished
    with pytest.raises(ModelShelfError, match=r"release\.json"):
        ModelShelf(sites.folder / "models" / "a", [SigningKey.generate().public]).open_newest()


def test_adapters_are_merged_and_what_was_signed_lies_beside(tmp_path):
    sites = Sites(tmp_path, glm(lora=True))
    sites.run()
    held = sites.shelves["b"].open_newest()
    sites.shelves["b"].verify(held)
    vector = np.fromfile(held.folder / "vector.f32", "<f4")
    assert vector_sha256(vector) == sites.coordinator.model_sha256
    names = AutoModelForSequenceClassification.from_pretrained(held.folder).state_dict()
    assert not [name for name in names if "lora" in name]


def test_a_lost_reply_and_a_lost_state_are_survived(tmp_path):
    sites, asked = Sites(tmp_path, glm()), []

    def act(site, _message, answer):
        asked.append(site)
        if asked.count(site) > 1:
            return answer()
        if site == "a":  # it keeps the model, and is asked again
            answer()
            return None
        (state,) = tmp_path.glob("run/nodes/b/**/state.json")
        state.unlink()
        return answer()

    run = sites.run(act=act, rounds=2, grace_s=0.2)
    assert sorted(asked) == ["a", "a", "b", "b"]
    for shelf in sites.shelves.values():
        shelf.verify(shelf.open_newest())
        assert [path.name for path in shelf.open_newest().folder.parent.iterdir()] == ["0000000001"]
    assert {entry["site"] for entry in entries(log_of(run), "given")} == {"a", "b"}


def test_the_model_of_the_last_run_and_the_one_before_are_kept(finished):
    sites, _ = finished
    for name in ("second", "third"):
        sites.run(name)
    for shelf in sites.shelves.values():
        newest = shelf.open_newest()
        assert newest.manifest.name == "third"
        assert sorted(path.name for path in newest.folder.parent.iterdir()) == ["0000000002", "0000000003"]


def test_one_model_is_taken_at_the_end_of_a_run_and_no_other(tmp_path):
    """A server could otherwise make a site's log and its disk busy for ever."""
    sites, replies = Sites(tmp_path, glm()), []

    def offer_another(_site, message, answer):
        first = answer()
        fields = message.content[RECORD]
        manifest = ModelManifest.read(fields["manifest"], [SERVER.public])
        fields["manifest"] = manifest.model_copy(update={"value": 0.99}).sign(SERVER)
        replies.append(answer())
        return first

    run = sites.run(act=offer_another)
    assert [reply.error.reason for reply in replies] == [
        "refused by rule plan: another model was given at the end of this run already"
    ] * 2
    for name, shelf in sites.shelves.items():
        assert shelf.open_newest().manifest.value is None
        assert len(entries(run / "nodes" / name / "custody" / "log.sqlite", "model")) == 1


def test_a_record_of_another_model_at_a_site_is_found(finished, tmp_path):
    _, run = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    foreign = SignedLog(log_of(copy), SERVER)
    fields = {"run": entries(log_of(run), "given")[0]["run"], "site": "a"}
    foreign.append("given", {**fields, "model": "f" * 64, "manifest": "f" * 64})
    failed = select_failed(verify(copy).checks)
    assert "a holds a model that is not the run's" in " ".join(check.detail for check in failed)


def test_a_manifest_that_the_server_did_not_sign_changes_nothing(tmp_path):
    sites = Sites(tmp_path, glm())

    def forge(_site, message, answer):
        fields = message.content[RECORD]
        manifest = ModelManifest.read(fields["manifest"], [SERVER.public])
        fields["manifest"] = manifest.model_copy(update={"value": 0.99}).sign(SigningKey.generate())
        return answer()

    run = sites.run(act=forge)
    assert [shelf.open_newest() for shelf in sites.shelves.values()] == [None, None]
    assert entries(log_of(run), "given") == []
