"""What the verification of a light model's layers came to, in words for the page and for the terminal."""

from collections.abc import Sequence

from fedglm.reports.formats import format_integer, format_number, pluralize
from fedglm.reports.html.markup import clean
from fedglm.reports.light.figures import measured
from fedglm.reports.light.record import LightRecord, RepairRecord

_NAMED = 4
_GOT = {"bits": "the next more bits", "training": "more training"}


def describe_repair(record: LightRecord) -> str:
    """Say which layers deviated, what they got, and what that gained."""
    found = record.repair
    if found is None:
        return "The layers' outputs were not verified."
    least = f"{found.min_cosine:g}"
    if not found.deviating:
        return f"No layer deviates: each one's outputs have a cosine of at least {least} with the reference's."
    count = pluralize(len(found.deviating), "layer")
    said = f"{count} {'deviates' if len(found.deviating) == 1 else 'deviate'} (cosine below {least})."
    if found.way is None:
        return f"{said} No repair: {found.outcome}."
    return f"{said} {_describe_attempt(found)}"


def _describe_attempt(found: RepairRecord) -> str:
    gain = (
        f"loss {measured(found.loss_before, format_number)} to {measured(found.loss_after, format_number)}, "
        f"{measured(found.bytes_before, format_integer)} to {measured(found.bytes_after, format_integer)} bytes"
    )
    got = _GOT[found.way or "bits"]
    names = _list_names(found.layers)
    return f"{names} got {got}: {gain}; {'kept' if found.kept else 'not kept'}: {found.outcome}."


def _list_names(layers: Sequence[str]) -> str:
    short = [" ".join(clean(name).split()).removeprefix("model.").removesuffix(".weight") for name in layers]
    more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    return ", ".join(short[:_NAMED]) + more
