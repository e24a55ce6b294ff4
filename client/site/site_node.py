"""The node of a deployed site in a run: its own records and device, and the settings shared through the plan's recipe.

Everything that can be refused is refused before a record is read: a refusal depends on the plan and on `site.toml`, and
never on the content of the records.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import torch

from fedglm.autoglm.federation import SiteRecords
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
    """Make the site's node in a run.

    Args:
        site: The site.
        plan: The run's plan, which the gate has admitted.
        envelope: Bytes of the message around an update.

    Raises:
        Refusal: Rule `recipe`: the recipe is invalid, contradicts the plan, or is not for this site or machine; or rule
            `models`: the site starts from other weights than the plan names.
        DataError, ModelError: The public reference, the records or the model's folder cannot be used.
        PrivacyError: Policy, ledger or the state's key cannot be used.
    """
    # The order of floating-point sums, and with it their bits, depends on the number of threads.
    torch.set_num_threads(site.settings.site.threads)
    custody = site.custody()
    with custody.log_refusals(plan.run, 0):
        try:
            outline = _make_outline(site, plan.spec.recipe)
            training = _adapt_training(site, outline.recipe, plan)
            _check_recipe(outline, training, plan, site, permits_metrics=bool(custody.policy.metrics))
        except RecipeError as exc:
            raise Refusal("recipe", str(exc)) from exc
        model = _start_model(site, plan.spec.recipe, plan.model)
        _check_initial_weights(model, plan, custody.policy)
    noised = plan.spec.noise.mechanism is not None
    recipe, records = outline.recipe, _load_records(site, plan.spec.recipe, noised)
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
    """A run at this site, without its weights and records."""

    recipe: Recipe
    data: DataSettings
    model: ModelSettings
    task: Task
    layout: Layout
    size: ModelSize


@lru_cache(maxsize=1)
def _make_outline(site: Site, recipe_toml: str) -> _Outline:
    """Make the outline from the recipe and `site.toml`; the last one is cached for later messages in this process.

    Raises:
        RecipeError: The recipe is invalid, or is not for this site.
        DataError, ModelError: The public reference or the model's folder cannot be used.
    """
    recipe = Recipe.from_toml(recipe_toml)
    data, model = _make_data_settings(site, recipe), _make_model_settings(site, recipe)
    task = make_public_task(data, model)
    outlined = outline_model(model, task)
    return _Outline(recipe, data, model, task, make_layout(outlined), ModelSize.from_model(outlined, task))


@lru_cache(maxsize=1)
def _build_federated_model(site: Site, recipe_toml: str) -> FederatedModel:
    outline = _make_outline(site, recipe_toml)
    model = build_model(outline.model, outline.task, seed=outline.recipe.seed)
    return FederatedModel(model, outline.task, outline.recipe.downlink)


@lru_cache(maxsize=1)
def _start_model(site: Site, recipe_toml: str, model_sha256: str) -> FederatedModel:
    """Return the recipe's model; with the parameters of a model that the site holds, where the plan starts from those.

    A run that starts from a model that is not here gets it from the server, as a snapshot.
    """
    model = _build_federated_model(site, recipe_toml)
    if vector_sha256(model.initial) == model_sha256:
        return model
    held = site.model_shelf().find_vector(model_sha256, model.layout.sha256)
    return model if held is None else model.starting_from(held)


@lru_cache(maxsize=1)
def _load_records(site: Site, recipe_toml: str, noised: bool) -> SiteRecords:
    """Read the records; nothing may be refused afterwards."""
    outline = _make_outline(site, recipe_toml)
    seed, faults = outline.recipe.seed, site.settings.data.make_row_faults()
    share = site.settings.data.part
    _, records = load_site(
        outline.data, name=site.name, share=share, seed=seed, model=outline.model, noised=noised, faults=faults
    )
    if faults.counts:
        LOG.warning("the run goes on without what cannot be used of the records: %s", faults.in_words())
    return records


def _check_initial_weights(model: FederatedModel, plan: RunPlan, policy: Policy) -> None:
    """Check the weights that this site starts from against the plan, where the policy permits weights and no layout.

    A server need not send version 0: it can begin with a later one. Where a layout is permitted, any weights are, and
    a machine whose initialisation differs in the last bits may take part.
    """
    if policy.models == (ANY,) or plan.layout in policy.models:
        return
    if (initial := vector_sha256(model.initial)) != plan.model:
        raise Refusal(
            "models",
            f"the recipe makes the weights {initial} here, and the plan names {plan.model}; to take any weights, "
            f"list its layout {plan.layout}",
        )


def _adapt_training(site: Site, recipe: Recipe, plan: RunPlan) -> LocalTrainingSettings:
    """Adapt the training settings: the site's device, and a bound on the sequences that are in memory at once.

    With DP-SGD the number of units in a step is random. Without a bound, memory use would depend on the number of
    records, and a step might take more memory than there is.
    """
    training = recipe.training
    changes: dict[str, object] = {"device": site.settings.site.device}
    if plan.spec.noise.mechanism is not None:
        size = training.micro_batch_size or 2 * training.batch_size
        changes["micro_batch_size"] = max(size, plan.spec.noise.mechanism.records_per_unit)
    return training.model_copy(update=changes)


def _check_recipe(
    outline: _Outline, training: LocalTrainingSettings, plan: RunPlan, site: Site, *, permits_metrics: bool
) -> None:
    """Check a recipe against the plan around it and against this machine, so that the run is what the policy permits.

    Raises:
        RecipeError: The recipe contradicts the plan, a run with noise would use a share of a file, or the run does not
            fit into memory.
    """
    recipe, layout, own = outline.recipe, outline.layout, site.settings.data
    for name, value, announced in (
        ("training.local_steps", recipe.training.local_steps, plan.spec.local_steps),
        ("update.codec", recipe.update.codec, plan.spec.codec),
        ("update.density", recipe.update.effective_density, plan.spec.density),
        ("the number of parameters", layout.size, plan.parameters),
        ("the layout", layout.sha256, plan.layout),
    ):
        if value != announced:
            raise RecipeError(f"{name} is {value} by the recipe, and {announced} by the plan around it")
    private = plan.spec.noise.mechanism is not None
    if private and own.share is not None and not own.is_builtin:
        raise RecipeError(
            f"{site.name} holds a share of a file, which is for trials without noise: who holds what follows from all "
            "records of the file, so that noise would not hide one of them"
        )
    sequences = training.micro_batch_size or training.batch_size
    evaluated = permits_metrics and (plan.spec.noise.metrics is not None or not private)
    check_memory(outline.size, sequences, torch_device(training.device), clipped=private, evaluated=evaluated)


def _make_data_settings(site: Site, recipe: Recipe) -> DataSettings:
    """Combine the recipe's data settings, which all sites share, with the site's own in `site.toml`.

    Raises:
        RecipeError: The recipe is for other data, or requires a field that `site.toml` does not name.
        DataError: The public reference cannot be read.
    """
    own, shared = site.settings.data, recipe.data
    if own.is_builtin or shared.source != OWN:
        if shared.source != own.source:
            raise RecipeError(
                f"the run is for {_describe_source(shared.source)}, and the site.toml of {site.name} names "
                f"{own.source if own.is_builtin else 'records of its own'}"
            )
        return shared
    _check_named_fields(site, shared)
    changes = {name: getattr(own, name) for name in ("text_field", "label_field", "unit_field", "site_field")}
    return shared.model_copy(
        update={**changes, "source": site.source, "public_reference": _find_public_reference(site, recipe)}
    )


def _check_named_fields(site: Site, shared: DataSettings) -> None:
    """Check that `site.toml` names each field that the run reads: the site decides which fields a run may read.

    Raises:
        RecipeError: It does not name a field, or names other classes.
    """
    own, tabular = site.settings.data, shared.task == "tabular-classification"
    classes = shared.task != "language-model"
    needed = {"text_field": not tabular, "label_field": classes, "class_names": classes}
    if missing := [name for name, is_needed in needed.items() if is_needed and not getattr(own, name)]:
        raise RecipeError(f"the run needs what the site.toml of {site.name} does not name: data.{missing[0]}")
    if classes and set(own.class_names) != set(shared.class_names):
        raise RecipeError(f"the run's class_names are not those in data.class_names of the site.toml of {site.name}")
    if unlisted := [name for name in shared.feature_fields if tabular and name not in own.feature_fields]:
        raise RecipeError(
            f"the run reads the field {unlisted[0]!r}, which the site.toml of {site.name} does not list in "
            "data.feature_fields"
        )


def _find_public_reference(site: Site, recipe: Recipe) -> str | None:
    if recipe.data.public_reference is None:
        return None
    own = site.settings.data.public_reference
    if own is None:
        raise RecipeError(f"the run needs a public reference: {site.name} must name its copy in data.public_reference")
    path = str(site.resolve(own))
    if file_sha256(path) != recipe.reference_sha256:
        raise RecipeError(f"the public reference of {site.name} is not the run's: get the server's copy")
    return path


def _make_model_settings(site: Site, recipe: Recipe) -> ModelSettings:
    """Return the recipe's model settings, with this site's copy where the model is a folder.

    Raises:
        RecipeError: `site.toml` names no such folder.
    """
    if recipe.model.path is None:
        return recipe.model
    own = site.settings.model.path
    if own is None:
        raise RecipeError(f"the run starts from a model's folder: {site.name} must name its copy in model.path")
    return recipe.model.model_copy(update={"path": str(site.resolve(own))})


def _describe_source(source: str) -> str:
    return "the sites' own records" if source == OWN else source
