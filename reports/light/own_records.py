"""What a light model loses on the records that the run's model was made for, in words."""

from fedglm.reports.light.figures import format_rise
from fedglm.reports.light.record import LightRecord


def compare_on_own_records(record: LightRecord) -> str:
    """Say how the chosen model does there against the dense one as the run left it; empty where that is not known.

    The control adapted to the public text as the chosen model did: against it alone, a text of another kind would cost
    nothing.
    """
    known = [row for row in record.rows if row.own_loss]
    chosen = next((row for row in known if row.name.startswith("chosen")), None)
    if chosen is None or chosen.own_loss is None or known[0].own_loss is None:
        return ""
    rise = chosen.own_loss / known[0].own_loss - 1
    said = f"Against the dense model as the run left it, the chosen one's loss there is {format_rise(rise)}"
    if rise <= record.tolerance:
        return f"{said}."
    return f"{said}: the public text is of another kind than the run's; --text names a nearer one."
