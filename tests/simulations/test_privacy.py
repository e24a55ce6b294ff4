"""A federation with noise, from outside: what it promises, what its ledgers say, and that no seed repeats its noise."""

import json
import shutil

import numpy as np
import pytest
from command_line import rows_of, write_tiny

from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.ledger.ledger import Ledger

pytestmark = pytest.mark.usefixtures("unrendered")

EPSILON = 6.0


@pytest.fixture(scope="module")
def private(fedglm, tmp_path_factory):
    home = tmp_path_factory.mktemp("private")
    toml, folder = write_tiny(home), home / "run"
    summary = fedglm("simulate", toml, "--out", folder, "--epsilon", EPSILON, "--json").json
    return toml, folder, summary


def test_the_run_says_what_it_promises_and_keeps_it(private):
    _, folder, summary = private
    rows = rows_of(folder)
    assert summary["privacy"].startswith("Differential privacy: ")
    assert summary["delta"] == 0.002  # 1 / (10 x 40), rounded down to one digit
    epsilons = [row["epsilon"] for row in rows]
    assert epsilons == sorted(epsilons)
    assert 0 < epsilons[0] < epsilons[-1] == summary["epsilon"] <= EPSILON
    assert summary["epsilon"] > EPSILON - 0.1  # the budget is used
    assert all(row["rejections"] == {} for row in rows)


def test_each_site_s_ledger_holds_a_charge_for_each_round(private):
    _, folder, summary = private
    for site in ("site-0", "site-1"):
        rows = Ledger(folder / "nodes" / site / "custody" / "ledger.sqlite").rows()
        assert [row.charge.round for row in rows] == [1, 2, 3]
        mechanism = rows[0].charge.mechanism
        assert (mechanism.steps, mechanism.sampling_rate, mechanism.unit) == (4, 8 / 40, "record")
        event = Event(mechanism.noise_multiplier, 8 / 40, 3 * 4)
        assert compute_epsilon([event], summary["delta"]).epsilon == pytest.approx(summary["epsilon"])
        assert not (folder / "nodes" / site / "custody" / "refusals.jsonl").exists()


def test_measures_that_nodes_report_are_noised_charged_and_within_the_same_budget(fedglm, private, tmp_path):
    toml, _, _ = private
    folder = tmp_path / "run"
    options = ("--epsilon", EPSILON, "--set", "federation.node_metrics=true", "--json")
    summary = fedglm("simulate", toml, "--out", folder, *options).json
    assert EPSILON - 0.1 < summary["epsilon"] <= EPSILON
    (updates, metrics) = fedglm("audit", "ledger", folder / "nodes" / "site-0", "--json").json["charges"]
    assert [(kind["purpose"], kind["releases"], kind["rounds"]) for kind in (updates, metrics)] == [
        ("update", 3, [1, 3]),
        ("metrics", 3, [1, 3]),
    ]
    measured = Event(metrics["mechanism"]["noise_multiplier"], 1.0, 3)
    assert metrics["mechanism"]["sampling_rate"] == 1.0
    assert compute_epsilon([measured], summary["delta"]).epsilon <= 0.1 * EPSILON
    rows = rows_of(folder)
    assert all(0 <= row["received_loss"] <= np.log(8) for row in rows)
    assert all(row["rejections"] == {} for row in rows)


def test_the_page_shows_the_guarantee_and_what_was_spent(private):
    page = (private[1] / "report.html").read_text()
    assert "Privacy guarantee" in page
    assert "No privacy guarantee" not in page


def test_an_auditor_reads_the_ledger(fedglm, private):
    _, folder, summary = private
    node = folder / "nodes" / "site-1"
    result = fedglm("audit", "ledger", node, "--json").json
    assert result["rows"] == 3
    (charges,) = result["charges"]
    assert (charges["rounds"], charges["rows"], charges["purpose"]) == ([1, 3], [1, 3], "update")
    (data_set,) = result["data_sets"].values()
    assert data_set["epsilon"] == pytest.approx(summary["epsilon"])
    assert (data_set["budget"], data_set["delta"]) == (EPSILON, summary["delta"])
    assert data_set["pld"] <= data_set["prv"] + 1e-9 <= data_set["rdp"]
    looser = fedglm("audit", "ledger", node / "custody" / "ledger.sqlite", "--delta", 0.01, "--json").json
    assert looser["data_sets"]["site-1"]["epsilon"] < data_set["epsilon"]
    text = fedglm("audit", "ledger", node)
    assert text.code == 0
    assert "chain verified up to row 3" in text.out


def test_a_damaged_or_missing_ledger_is_one_line(fedglm, private, tmp_path):
    assert "holds no ledger.sqlite" in fedglm("audit", "ledger", tmp_path).line()
    copy = tmp_path / "ledger.sqlite"
    shutil.copy(private[1] / "nodes" / "site-0" / "custody" / "ledger.sqlite", copy)
    content = bytearray(copy.read_bytes())
    at = content.index(b'"round":2')
    content[at + 8] = ord("1")
    copy.write_bytes(content)
    assert "damaged" in fedglm("audit", "ledger", copy).line()


def test_the_seed_repeats_the_run_but_not_its_noise(fedglm, private, tmp_path):
    toml, _, summary = private
    again = fedglm("simulate", toml, "--out", tmp_path / "again", "--epsilon", EPSILON, "--json").json
    assert again["model_sha256"] != summary["model_sha256"]
    assert again["epsilon"] == summary["epsilon"]


def test_no_dp_takes_a_scenario_s_epsilon_away_loudly(fedglm, private, tmp_path):
    toml, _, _ = private
    asked = tmp_path / "asked.toml"
    asked.write_text(toml.read_text() + f"[privacy]\nepsilon = {EPSILON}\n")
    summary = fedglm("simulate", asked, "--no-dp", "--out", tmp_path / "run", "--json").json
    assert summary["epsilon"] is None
    assert summary["privacy"].startswith("No privacy guarantee")
    # The ledger remembers that what left had no noise: it can promise nothing for these data from now on.
    result = fedglm("audit", "ledger", tmp_path / "run" / "nodes" / "site-0", "--json").json
    assert result["data_sets"]["site-0"]["without_noise"]


def test_a_run_goes_on_where_it_stopped_and_stays_within_its_budget(fedglm, private, tmp_path):
    toml, _, _ = private
    folder = tmp_path / "run"
    options = ("simulate", toml, "--out", folder, "--epsilon", EPSILON, "--json")
    fedglm(*options)
    # As a process leaves it that was killed after round 2: the page and the summary are not there yet.
    for name in ("summary.json", "report.html"):
        (folder / name).unlink()
    summary = fedglm(*options, "--resume").json
    assert summary["epsilon"] <= EPSILON
    rows = Ledger(folder / "nodes" / "site-0" / "custody" / "ledger.sqlite").rows()
    assert [row.charge.round for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('privacy.unit="patient"', "the data tell units apart by 'record'"),
        ("privacy.delta=0.5", "privacy.delta"),
        ("privacy.epsilon=1e-9", "epsilon"),
    ],
)
def test_a_wrong_wish_is_answered_before_anything_runs(fedglm, private, tmp_path, setting, said):
    toml, _, _ = private
    result = fedglm("simulate", toml, "--out", tmp_path / "x", "--epsilon", EPSILON, "--set", setting, "--json")
    assert said in result.line()


def test_noise_is_what_differs_from_a_run_without(private):
    """Not a proof, but a run that forgot its noise would end far nearer to its start."""
    _, folder, _ = private
    norms = []
    for site in ("site-0", "site-1"):
        (residual,) = (folder / "nodes" / site).glob("pending_residual-*.bin")
        norms.append(float(np.linalg.norm(np.frombuffer(residual.read_bytes(), "<f4"))))
    assert min(norms) > 1
    assert json.loads((folder / "summary.json").read_text())["epsilon"] > 0
