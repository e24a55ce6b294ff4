"""The held-out records of the run whose model is made light."""

from fedglm.autoglm.data.examples import concatenate
from fedglm.autoglm.light.search.pipeline import Source
from fedglm.autoglm.light.search.record import OwnText
from fedglm.autoglm.light.search.sources import DenseModel
from fedglm.simulations.held_out_records import NotPublic, load_held_out


def load_own(dense: DenseModel, source: Source, *, declared_public: bool) -> OwnText | None:
    """Load the held-out records of the run, or say why they may not be looked at; None for a model without a run.

    Args:
        dense: The dense model.
        source: The same, with its public text, whose sequences are left out.
        declared_public: Whether the user declares a file of the sites' records public.
    """
    if dense.run is None:
        return None
    try:
        examples = load_held_out(dense.run, declared_public=declared_public)
    except NotPublic as exc:
        return OwnText(reason=str(exc))
    return OwnText.without(examples, concatenate([source.text.train, source.text.held_out, source.test]))
