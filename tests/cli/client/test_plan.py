"""A policy that names the terms of a plan, as a site's people come to write it."""

import json

import pytest
from command_line import run_here
from plans import change_plan
from site_folders import make_project, make_site

from fedglm.client.gate import OutboundGate
from fedglm.client.site.folder import open_site
from fedglm.client.site.policy_signing import sign_site_policy
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.run_plan import SignedPlan

pytestmark = pytest.mark.usefixtures("unsynced")

DATA = {"source": "breast-cancer", "share": "0/3"}
STRICT = {"plans": ("0" * 64,), "models": ("0" * 64,), "codecs": ("topk-sign",), "steps_at_most": 50}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


def handed_over(project, folder, *options):
    """The file that the server's operator makes, and what the command says of it."""
    path = folder / "hospital.plan"
    done = run_here("run", "hospital", "-C", project.folder, *options, "--terms", path)
    assert done.code == 0, done.err
    return path, done.out


@pytest.fixture(scope="module")
def written(project, tmp_path_factory):
    return handed_over(project, tmp_path_factory.mktemp("handed-over"), "--no-dp")


def test_terms_are_shown_with_what_stands_against_them_and_then_permitted(tmp_path, project, written, fedglm):
    path, told = written
    site = make_site(tmp_path, project, policy=STRICT, data=DATA)
    shown = fedglm("client", "plan", path, site.folder, "--json")
    found = json.loads(shown.out)
    assert shown.code == 2
    assert found["broken"].keys() == {"plans", "models"}
    assert found["sha256"] in told
    assert found["meaning"]["noise"].startswith("none")
    # What it prints is what the policy needs.
    permitted = STRICT | {"plans": (found["sha256"],), "models": (found["meaning"]["starts from"],)}
    policy = Policy(**{**site.custody().policy.model_dump(), **permitted})
    (site.folder / "policy.toml").write_text(policy.to_toml())
    assert fedglm("client", "plan", path, site.folder).code == 0
    site = open_site(site.folder)
    sign_site_policy(site)
    gate = OutboundGate(site.custody(), site.home, site.key())
    signed = SignedPlan.from_text(path.read_text())
    for run in ("6b1f0d", "another run of the same terms"):
        gate.admit(SignedPlan.sign(change_plan(signed.plan, run=run), project.signing_key).to_bytes())
    for change in ({"rounds": signed.plan.spec.rounds + 1}, {"recipe": ""}, {"model": "1" * 64}):
        with pytest.raises(Refusal, match="rule plans"):
            gate.admit(SignedPlan.sign(change_plan(signed.plan, **change), project.signing_key).to_bytes())


def test_a_plan_with_noise_says_what_it_spends(tmp_path, project, fedglm):
    # All units in each step, for which noise is calibrated in a blink.
    terms = {"privacy.units": 100, "training.batch_size": 100, "privacy.delta": 1e-3}
    sets = [word for name, value in terms.items() for word in ("--set", f"{name}={value}")]
    path, _ = handed_over(project, tmp_path, "--epsilon", 8, *sets)
    site = make_site(tmp_path, project, policy={"delta": 1e-3}, data=DATA)
    found = json.loads(fedglm("client", "plan", path, site.folder, "--json").out)
    assert 7.5 < found["epsilon"] <= 8.0
    assert found["meaning"]["protects"].startswith("each record")
    assert "unit" in found["broken"]  # the policy does not say what it protects


@pytest.mark.parametrize("spoil", [lambda text: text[:-9], lambda _: "no plan", lambda _: "", lambda t: "AAAA" + t])
def test_what_is_no_plan_is_one_clear_error(tmp_path, project, written, fedglm, spoil):
    site = make_site(tmp_path, project, data=DATA)
    path = tmp_path / "spoiled.plan"
    path.write_text(spoil(written[0].read_text()))
    done = fedglm("client", "plan", path, site.folder)
    assert done.code == 2
    assert "holds no terms of a plan" in done.err


def test_another_server_s_plan_is_not_looked_at(tmp_path, project, written, fedglm):
    site = make_site(tmp_path, project, data=DATA)
    other = SignedPlan.from_text(written[0].read_text())
    path = tmp_path / "other.plan"
    path.write_text(SignedPlan.sign(other.plan, site.key()).to_text())
    done = fedglm("client", "plan", path, site.folder)
    assert done.code == 2
    assert "kit.toml names another" in done.err
