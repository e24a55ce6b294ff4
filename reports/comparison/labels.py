"""A codec's label with the epsilon that it ran under, and without."""

import re


def with_epsilon(label: str, epsilon: float) -> str:
    """A variant's label in a comparison over epsilons; `inf` is without noise."""
    return f"{label}{'+' if '@' in label else '@'}epsilon={epsilon:g}"


def without_epsilon(label: str) -> str:
    """The label that `with_epsilon` was given."""
    return re.sub(r"[@+]epsilon=[^+@]*$", "", label)
