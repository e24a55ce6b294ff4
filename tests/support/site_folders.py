"""Folders of sites for tests: a project of a server, the kit of a site, and the site made from it."""

import shutil
from contextlib import suppress
from pathlib import Path

import tomli_w
from custodies import OPEN

from fedglm.client.site.folder import Site, open_site
from fedglm.client.site.policy_signing import sign_site_policy
from fedglm.client.site.site_keys import make_keys
from fedglm.compression.downlink import vector_sha256
from fedglm.privacy.policy.policy import Policy
from fedglm.protocol.recipe import Recipe
from fedglm.scenarios.deployment import build_deployed_model
from fedglm.scenarios.scenario import Scenario
from fedglm.server.project.folder import Project
from fedglm.server.project.kits import write_kit
from fedglm.server.project.settings import ProjectSettings

NAME = "berlin"


def make_project(home: Path, port: int = 8443, **settings: object) -> Project:
    """A server's project, with a kit for the one site."""
    hosts = {"hosts": ("127.0.0.1",)} | settings
    project = Project.make(home / "project", ProjectSettings(name="fl", port=port, control_port=1, **hosts))
    write_kit(project, NAME)
    return project


def make_site(home: Path, project: Project, *, policy: dict | None = None, **sections: dict) -> Site:
    """The site of the kit, with keys, the sections of its `site.toml`, and a policy that permits nearly all."""
    folder = home / NAME
    shutil.copytree(project.kits / NAME, folder)
    write_site_file(folder, **sections)
    site = open_site(folder)
    make_keys(site.folder, site.name, site.flower_key, site.signing_key)
    (folder / "policy.toml").write_text(Policy(**{"data_set": "notes", **OPEN, **(policy or {})}).to_toml())
    sign_site_policy(site, leave_out=True)
    return site


def write_site_file(folder: Path, **sections: dict) -> None:
    """Another `site.toml`."""
    (folder / "site.toml").write_text(tomli_w.dumps({"site": {"name": NAME}, **sections}))


def run_of(scenario_toml: str) -> tuple[Scenario, Recipe, dict]:
    """A scenario, the recipe that its server tells, and what the plan says beside it."""
    scenario = Scenario.from_toml(scenario_toml)
    made = build_deployed_model(scenario)
    recipe = Recipe.of(
        seed=scenario.federation.seed,
        weighting=scenario.federation.weighting,
        **{name: getattr(scenario, name) for name in ("model", "data", "training", "update", "downlink")},
    )
    beside = {
        "layout": made.model.layout.sha256,
        "parameters": made.model.layout.size,
        "model": vector_sha256(made.model.initial),
        "codec": scenario.update.codec,
        "density": scenario.update.effective_density,
        "local_steps": scenario.training.local_steps,
        "recipe": recipe.to_toml(),
    }
    return scenario, recipe, beside


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, to see whether anything changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with suppress(IsADirectoryError):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found
