"""The node of a real site in a run: its own records and device, and all that sites share from the plan's recipe."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fedglm.autoglm.data import Site as Records
from fedglm.autoglm.models import ModelSettings, build_model
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.site_data import load_site
from fedglm.client.node import Node, Workbench
from fedglm.client.recipe import OWN, Recipe, RecipeError, file_sha256
from fedglm.client.site_folder import Site
from fedglm.compression.downlink import vector_sha256
from fedglm.privacy.errors import Refusal
from fedglm.privacy.plan import RunPlan


def make_node(site: Site, plan: RunPlan, envelope: int) -> Node:
    """The site's node in a run; see `Site.node`."""
    # Sums in other orders give other bits.
    torch.set_num_threads(site.settings.site.threads)
    custody = site.custody()
    with custody.logged(plan.run, 0):
        try:
            stage = _stage(site, plan.recipe)
            _check(stage, plan)
        except RecipeError as exc:
            raise Refusal("recipe", str(exc)) from exc
    recipe = stage.recipe
    declared = custody.policy.declare_units if recipe.weighting == "declared" else None
    return Node(
        site.name,
        stage.workbench,
        train=stage.records.train,
        held_out=stage.records.held_out,
        training=recipe.training.model_copy(update={"device": site.settings.site.device}),
        update=recipe.update,
        folder=site.home / f"model-{plan.layout[:16]}",  # vectors of another model do not fit
        seed=recipe.seed,
        declared=declared or 0,
        envelope=envelope,
        vault=site.vault(),
    )


@dataclass(frozen=True)
class _Stage:
    """Records and model of a run, built; `initial` is the SHA-256 (hex) of the weights of version 0."""

    recipe: Recipe
    records: Records
    workbench: Workbench
    initial: str


@lru_cache(maxsize=1)
def _stage(site: Site, recipe_toml: str) -> _Stage:
    """Build them; the last are kept for the messages that follow in this process."""
    recipe = Recipe.from_toml(recipe_toml)
    settings, model_settings = _data_settings(site, recipe), _model_settings(site, recipe)
    share = site.settings.data.part
    task, records = load_site(settings, name=site.name, share=share, seed=recipe.seed, model=model_settings)
    model = build_model(model_settings, task, seed=recipe.seed)
    workbench = Workbench(model, task, recipe.downlink)
    return _Stage(recipe, records, workbench, vector_sha256(workbench.initial))


def _check(stage: _Stage, plan: RunPlan) -> None:
    """Hold a recipe to the plan around it: what the policy has looked at is what is done."""
    recipe, layout = stage.recipe, stage.workbench.layout
    for name, told, announced in (
        ("training.local_steps", recipe.training.local_steps, plan.local_steps),
        ("update.codec", recipe.update.codec, plan.codec),
        ("update.density", recipe.update.effective_density, plan.density),
        ("the number of parameters", layout.size, plan.parameters),
        ("the layout", layout.sha256, plan.layout),
        # Here, for a server need not send version 0: it can begin with a later one.
        ("the weights that the run starts from", stage.initial, plan.model),
    ):
        if told != announced:
            raise RecipeError(f"{name} is {told} by the recipe, and {announced} by the plan around it")


def _data_settings(site: Site, recipe: Recipe) -> DataSettings:
    """What the records mean in a run: what all sites share from the recipe, and the site's own from `site.toml`.

    Raises:
        RecipeError: The recipe is for other data, or asks for a field that `site.toml` does not name.
        DataError: The public reference cannot be read.
    """
    own, shared = site.settings.data, recipe.data
    if own.is_builtin or shared.source != OWN:
        if shared.source != own.source:
            raise RecipeError(
                f"the run is for {_named(shared.source)}, and the site.toml of {site.name} names "
                f"{own.source if own.is_builtin else 'records of its own'}"
            )
        return shared
    _check_open(site, shared)
    changes = {name: getattr(own, name) for name in ("text_field", "label_field", "unit_field", "site_field")}
    return shared.model_copy(update={**changes, "source": site.source, "public_reference": _reference(site, recipe)})


def _check_open(site: Site, shared: DataSettings) -> None:
    """Refuse to read a field that `site.toml` does not name: which fields a run learns from is the site's to say."""
    own, tabular = site.settings.data, shared.task == "tabular-classification"
    needed = {"text_field": not tabular, "label_field": shared.task != "language-model"}
    if missing := [name for name, wanted in needed.items() if wanted and getattr(own, name) is None]:
        raise RecipeError(f"the run needs a field that the site.toml of {site.name} does not name: data.{missing[0]}")
    if closed := [name for name in shared.feature_fields if tabular and name not in own.feature_fields]:
        raise RecipeError(
            f"the run reads the field {closed[0]!r}, which the site.toml of {site.name} does not list in "
            "data.feature_fields"
        )


def _reference(site: Site, recipe: Recipe) -> str | None:
    if recipe.data.public_reference is None:
        return None
    own = site.settings.data.public_reference
    if own is None:
        raise RecipeError(f"the run needs a public reference: {site.name} must name its copy in data.public_reference")
    path = str(site.path(own))
    if file_sha256(path) != recipe.reference_sha256:
        raise RecipeError(f"the public reference of {site.name} is not the run's: get the server's copy")
    return path


def _model_settings(site: Site, recipe: Recipe) -> ModelSettings:
    """The model of a run, from this site's copy of its folder where it has one.

    Raises:
        RecipeError: `site.toml` names no such folder.
    """
    if recipe.model.path is None:
        return recipe.model
    own = site.settings.model.path
    if own is None:
        raise RecipeError(f"the run starts from a model's folder: {site.name} must name its copy in model.path")
    return recipe.model.model_copy(update={"path": str(site.path(own))})


def _named(source: str) -> str:
    return "the sites' own records" if source == OWN else source
