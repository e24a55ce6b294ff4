"""Attacks on a run's updates: they succeed where nothing protects an update, and fail where there is noise."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fedglm.audit.empirical import attacked_site, attacks, probe
from fedglm.audit.empirical import audited_run as audited_runs
from fedglm.audit.empirical.attacked_site import ATTACKS as TRIED
from fedglm.audit.empirical.attacked_site import AttackedSite, AttackSetting
from fedglm.audit.empirical.attacks import attack_run, choose_noise, make_settings
from fedglm.audit.empirical.audited_run import open_run
from fedglm.audit.empirical.results import ATTACK, AttackAudit
from fedglm.privacy.accounting.accountant import choose_default_delta
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.run_folder.record import ReportError
from fedglm.scenarios import deployment
from fedglm.scenarios.scenario import Scenario, scenario_text

TOKENS = {"tokens of a site", "tokens of one record"}
MEMBERSHIP = {"membership by gradients", "membership by loss", "membership by shadow models"}
UNNOISED = AttackSetting("no noise, dense", None, coded=False)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes the folder of a run of `hospital`, as far as an attack looks at it, with quick rounds."""
    monkeypatch.setattr("os.fsync", lambda _: None)

    def made(**settings):
        keys = {"training.local_steps": 2, **settings}
        scenario = Scenario.from_toml(scenario_text("hospital"), keys)
        (tmp_path / "scenario.toml").write_text(scenario.to_toml())
        return tmp_path

    return made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_attacks_on_hospital(fedglm, tmp_path):
    """Chance alone moves an area of membership by 0.03, of tokens by 0.02: limits are five times that from 0.5."""
    run = tmp_path / "run"
    done = fedglm("simulate", "hospital", "--rounds", "2", "--set", "evaluation.baselines=[]", "--out", run)
    assert done.code == 0
    audit = attack_run(run)
    assert audit == AttackAudit.read(run / "audit" / ATTACK)
    assert {result.attack for result in audit.results} == TOKENS | MEMBERSHIP
    assert len(audit.results) == 5 * 4
    assert (audit.records, audit.left_out) == ("run", ())
    assert 0 < audit.round_epsilon < audit.epsilon == 8
    unnoised = {result.attack: result.auc for result in audit.results if not result.private and not result.coded}
    assert min(unnoised[name] for name in (*TOKENS, "membership by gradients", "membership by shadow models")) >= 0.9
    for result in audit.results:
        if result.private:
            assert result.auc <= (0.6 if result.attack in TOKENS else 0.65), result


def test_too_few_records_leave_attacks_out_by_name(make, monkeypatch):
    stage = open_run(make(), ATTACK).built
    few = [
        replace(site, train=site.train.select(range(records)))
        for site, records in zip(stage.data.sites, (1, 2, 3, 5), strict=True)
    ]
    small = replace(stage, data=SimpleNamespace(task=stage.data.task, sites=few))
    monkeypatch.setattr(audited_runs, "build_scenario", lambda _: small)
    audit = attack_run(make())
    assert {result.attack for result in audit.results} == TOKENS | MEMBERSHIP
    assert audit.left_out[0] == "all attacks, at site-0: it takes two records, one to train on and one that is not"
    assert sum("at site-1, site-2: it takes two records that were" in reason for reason in audit.left_out) == 3
    few[1:] = []
    with pytest.raises(ReportError, match="nothing of the run can be attacked"):
        attack_run(make())
    assert not (make() / "audit" / ATTACK).exists()


@pytest.mark.slow
def test_gradients_that_do_not_fit_leave_two_attacks_out(make, monkeypatch):
    monkeypatch.setattr(probe, "MAX_VALUES", 3 * 512 * 64)
    monkeypatch.setattr(attacks, "_MAX_SITES", 2)
    audit = attack_run(make())
    assert {result.attack for result in audit.results} == {*TOKENS, "membership by loss"}
    assert [reason.split(":")[0] for reason in audit.left_out] == [
        "membership by gradients, at site-0, site-1",
        "membership by shadow models, at site-0, site-1",
    ]
    written = json.loads((make() / "audit" / ATTACK).read_text())
    assert written["said"] == audit.sentences != []


def test_shadows_are_as_large_as_what_they_stand_for(make, monkeypatch):
    audited = open_run(make(), ATTACK)
    site = AttackedSite(audited, audited.built.data.sites[0])
    trained, gradients = [], []
    original, compute = attacked_site.train_locally, probe.TrainingProbe.compute_gradient

    def noted(model, task, records, *others, **named):
        trained.append(len(records))
        return original(model, task, records, *others, **named)

    def counted(bench, record):
        gradients.append(record)
        return compute(bench, record)

    monkeypatch.setattr(attacked_site, "train_locally", noted)
    monkeypatch.setattr(probe.TrainingProbe, "compute_gradient", counted)
    update = site.make_update(UNNOISED, site.trained, 0)
    for _ in range(2):
        site.attack_membership(update)
        site.attack_membership_by_shadows(UNNOISED, update)
        site.attack_membership_by_shadows(replace(UNNOISED, coded=True), update)
    assert trained == [len(site.trained)] * 9  # shadows serve for both codings
    assert len(gradients) == 2 * len(site.trained)  # once a site


def test_records_that_were_learned_by_heart_are_told_from_others(make):
    """Of 24 sets of random records with random labels, each had an area of 0.83 at the least; here is one of them."""
    audited = open_run(make(**{"training.local_steps": 60}), ATTACK)
    (site, *_) = audited.built.data.sites
    crafted = audited.make_probe(site.train).craft_records(40, GaussianNoise(entropy=lambda size: bytes(range(size))))
    attacked = AttackedSite(audited, replace(site, train=crafted))
    assert attacked.attack_membership_by_loss(attacked.make_update(UNNOISED, attacked.trained, 0)).value >= 0.75


def test_members_are_told_by_what_an_update_holds_of_their_gradients(make):
    """With noise, chance alone moves the area by 0.06: the limit is five times that from 0.5."""
    audited = open_run(make(**{"training.local_steps": 5}), ATTACK)
    attacked = AttackedSite(audited, audited.built.data.sites[0])
    unnoised, _, noised, _ = make_settings(choose_noise(audited), "float16")
    update = attacked.make_update(unnoised, attacked.trained, 0)
    assert attacked.attack_membership(update).value >= 0.95
    assert attacked.attack_membership_by_shadows(unnoised, update).value >= 0.9
    assert abs(attacked.attack_membership(-update).value) <= 0.05  # the direction is what reveals members
    assert abs(attacked.attack_membership(attacked.make_update(noised, attacked.trained, 0)).value - 0.5) <= 0.3


def test_tokens_are_told_where_the_output_layer_moves_all_rows(make):
    """A language model's rows move whether their tokens are held or not; here by Adam, which moves all as far."""
    settings = {"model.preset": "glm-0.1m", "data.source": "pydoc", "data.length": 32, "training.optimizer": "adamw"}
    audited = open_run(make(**settings, **{"training.learning_rate": 2e-3, "training.local_steps": 4}), ATTACK)
    attacked = AttackedSite(audited, audited.built.data.sites[0])
    assert len(attacked.trained) == 4 * 32  # all of them are looked at in a round
    assert (
        TRIED["tokens of a site"](attacked, UNNOISED, attacked.make_update(UNNOISED, attacked.trained, 0)).value >= 0.8
    )
    assert TRIED["tokens of one record"](attacked, UNNOISED, attacked.trained).value >= 0.95


def test_noise_is_the_run_s_and_of_epsilon_8_where_it_has_none(make):
    own = choose_noise(open_run(make(**{"privacy.epsilon": 3.0}), ATTACK))
    assert own.epsilon == 3 > own.round_epsilon
    path = make() / "scenario.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0\n", ""))
    audited = open_run(path.parent, ATTACK)
    assert audited.built.scenario.privacy.epsilon is None
    assert make_settings(choose_noise(audited), "float16")[3].name.startswith("noise of epsilon 8 (this round ")


def test_of_real_sites_the_noise_is_the_plan_s_and_records_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    prepared = deployment.build_deployed_model(
        Scenario.from_toml(scenario_text("hospital"), {"privacy.units": 33, "federation.rounds": 5})
    )
    plan = deployment.prepare(prepared, tmp_path, 4)
    audited = open_run(tmp_path, ATTACK)
    noise = choose_noise(audited)
    assert noise.mechanism == plan.spec.noise.mechanism
    assert noise.delta == choose_default_delta(33)
    assert audited.records == "stand-in"
    assert audited.make_header()["model"] == plan.initial_sha256


def test_a_folder_without_a_run_is_named(fedglm, tmp_path):
    assert "holds no run" in fedglm("audit", "attack", tmp_path).line()
    assert "holds no run" in fedglm("audit", "canaries", tmp_path).line()


@pytest.mark.slow
def test_small_sites_are_attacked_and_the_command_s_json_is_the_file(fedglm, make):
    run = make(**{"federation.nodes": 60})
    done = fedglm("audit", "attack", run, "--json")
    assert done.code == 0
    audit = AttackAudit.read(run / "audit" / ATTACK)
    assert json.loads(done.out) == json.loads(audit.model_dump_json())
    assert {result.attack for result in audit.results} == TOKENS | MEMBERSHIP
    assert f"this round {audit.round_epsilon:.2f}" in audit.results[-1].variant
    assert len(audit.sentences) == 5
