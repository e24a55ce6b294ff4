"""Labels of codecs with the epsilon that they ran under, and without it."""

import re


def with_epsilon(label: str, epsilon: float) -> str:
    """Add an epsilon to a codec's label, for a comparison over epsilons; `inf` means without noise."""
    return f"{label}{'+' if '@' in label else '@'}epsilon={epsilon:g}"


def without_epsilon(label: str) -> str:
    """Return the label without the epsilon that `with_epsilon` added."""
    return re.sub(r"[@+]epsilon=[^+@]*$", "", label)
