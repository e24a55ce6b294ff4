"""The node of a real site in a run: its own records and device, and all that sites share from the plan's recipe.

Everything that can be refused is refused before a record is looked at: what a node answers follows from the plan and
from `site.toml`, and not from what lies in the records.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch

from fedglm.autoglm.federation import SiteRecords as Records
from fedglm.autoglm.models.build import build_model, outline_model
from fedglm.autoglm.settings import DataSettings, LocalTrainingSettings, ModelSettings
from fedglm.autoglm.site_data import load_site, make_public_task
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.precision import torch_device
from fedglm.client.node import Node
from fedglm.client.recipe_size import ModelSize, check_memory
from fedglm.client.site.folder import Site
from fedglm.compression.downlink import vector_sha256
from fedglm.compression.layout import Layout
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.run_plan import RunPlan
from fedglm.protocol.federated_model import FederatedModel, make_layout
from fedglm.protocol.recipe import OWN, Recipe, RecipeError, file_sha256

LOG = logging.getLogger(__name__)


def make_node(site: Site, plan: RunPlan, envelope: int) -> Node:
    """The site's node in a run; see `Site.node`."""
    # Sums in other orders give other bits.
    torch.set_num_threads(site.settings.site.threads)
    custody = site.custody()
    with custody.logged(plan.run, 0):
        try:
            outline = _outline(site, plan.spec.recipe)
            training = _training(site, outline.recipe, plan)
            _check(outline, training, plan, site, measures=bool(custody.policy.metrics))
        except RecipeError as exc:
            raise Refusal("recipe", str(exc)) from exc
        model = _federated_model(site, plan.spec.recipe)
        _check_start(model, plan, custody.policy)
    recipe, records = outline.recipe, _records(site, plan.spec.recipe)
    declared = custody.policy.declare_units if recipe.weighting == "declared" else None
    return Node(
        site.name,
        model,
        train=records.train,
        held_out=records.held_out,
        training=training,
        update=recipe.update,
        folder=site.home / f"model-{plan.layout[:16]}",  # vectors of another model do not fit
        seed=recipe.seed,
        declared=declared or 0,
        envelope=envelope,
        vault=site.vault(),
    )


@dataclass(frozen=True)
class _Outline:
    """What a run is at this site, without its weights and records."""

    recipe: Recipe
    data: DataSettings
    model: ModelSettings
    task: Task
    layout: Layout
    size: ModelSize


@lru_cache(maxsize=1)
def _outline(site: Site, recipe_toml: str) -> _Outline:
    """Make it of the recipe and `site.toml`; the last one is kept for the messages that follow in this process.

    Raises:
        RecipeError: The recipe is none, or is not for this site.
        DataError, ModelError: The public reference or the model's folder cannot be used.
    """
    recipe = Recipe.from_toml(recipe_toml)
    data, model = _data_settings(site, recipe), _model_settings(site, recipe)
    task = make_public_task(data, model)
    outlined = outline_model(model, task)
    return _Outline(recipe, data, model, task, make_layout(outlined), ModelSize.from_model(outlined, task))


@lru_cache(maxsize=1)
def _federated_model(site: Site, recipe_toml: str) -> FederatedModel:
    outline = _outline(site, recipe_toml)
    model = build_model(outline.model, outline.task, seed=outline.recipe.seed)
    return FederatedModel(model, outline.task, outline.recipe.downlink)


@lru_cache(maxsize=1)
def _records(site: Site, recipe_toml: str) -> Records:
    """Read the records: from here on nothing is refused."""
    outline = _outline(site, recipe_toml)
    seed, faults = outline.recipe.seed, site.settings.data.row_faults()
    share = site.settings.data.part
    _, records = load_site(outline.data, name=site.name, share=share, seed=seed, model=outline.model, faults=faults)
    if faults.counts:
        LOG.warning("the run goes on without what cannot be used of the records: %s", faults.in_words())
    return records


def _check_start(model: FederatedModel, plan: RunPlan, policy: Policy) -> None:
    """Hold the weights that this site starts from to the plan, where the policy permits weights and no layout.

    A server need not send version 0: it can begin with a later one. Where a layout is permitted, any weights are, and
    a machine whose initialisation differs in the last bits may take part.
    """
    if policy.models == (ANY,) or plan.layout in policy.models:
        return
    if (start := vector_sha256(model.initial)) != plan.model:
        raise Refusal(
            "models",
            f"the recipe makes the weights {start} here, and the plan names {plan.model}; to take any weights, "
            f"list its layout {plan.layout}",
        )


def _training(site: Site, recipe: Recipe, plan: RunPlan) -> LocalTrainingSettings:
    """How the node trains: on its own device, and with a number of sequences in memory that is known beforehand.

    Under noise chance decides how many units a step looks at. Without a bound their number would be one of the
    records', and a step might take more memory than there is.
    """
    training = recipe.training
    changes: dict[str, object] = {"device": site.settings.site.device}
    if plan.spec.noise.mechanism is not None:
        most = training.micro_batch_size or 2 * training.batch_size
        changes["micro_batch_size"] = max(most, plan.spec.noise.mechanism.records_per_unit)
    return training.model_copy(update=changes)


def _check(outline: _Outline, training: LocalTrainingSettings, plan: RunPlan, site: Site, *, measures: bool) -> None:
    """Hold a recipe to the plan around it, and to this machine: what the policy has looked at is what is done."""
    recipe, layout, own = outline.recipe, outline.layout, site.settings.data
    for name, told, announced in (
        ("training.local_steps", recipe.training.local_steps, plan.spec.local_steps),
        ("update.codec", recipe.update.codec, plan.spec.codec),
        ("update.density", recipe.update.effective_density, plan.spec.density),
        ("the number of parameters", layout.size, plan.parameters),
        ("the layout", layout.sha256, plan.layout),
    ):
        if told != announced:
            raise RecipeError(f"{name} is {told} by the recipe, and {announced} by the plan around it")
    private = plan.spec.noise.mechanism is not None
    if private and own.share is not None and not own.is_builtin:
        raise RecipeError(
            f"{site.name} holds a share of a file, which is for trials without noise: who holds what follows from all "
            "records of the file, so that noise would not hide one of them"
        )
    at_once = training.micro_batch_size or training.batch_size
    measures = measures and (plan.spec.noise.metrics is not None or not private)
    check_memory(outline.size, at_once, torch_device(training.device), clipped=private, evaluated=measures)


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
    classes = shared.task != "language-model"
    needed = {"text_field": not tabular, "label_field": classes, "class_names": classes}
    if missing := [name for name, wanted in needed.items() if wanted and not getattr(own, name)]:
        raise RecipeError(f"the run needs what the site.toml of {site.name} does not name: data.{missing[0]}")
    if classes and set(own.class_names) != set(shared.class_names):
        raise RecipeError(f"the run's class_names are not those in data.class_names of the site.toml of {site.name}")
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
