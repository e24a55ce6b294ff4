"""Pydantic's errors as one line that names key, value, remedy and near names."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.validation_errors import explain, locate_first_error, show_value


class Training(BaseModel):
    model_config = ConfigDict(extra="forbid")

    local_steps: int = Field(ge=1)
    rate: float = 0.1
    optimizer: str = "adamw"
    layers: list[int] = []

    @model_validator(mode="after")
    def _check(self) -> "Training":
        if self.optimizer == "none":
            raise ValueError("An optimizer is needed")
        return self


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    training: Training = Training(local_steps=1)

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.seed == 13:
            raise ValueError("Take another seed")
        return self


def error_of(values: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    return caught.value


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"sed": 1}, "unknown key sed: did you mean seed?"),
        ({"training": {"local_steps": 1, "layer": 2}}, "unknown key training.layer: did you mean layers?"),
        ({"training": {}}, "training.local_steps is missing"),
        ({"training": {"local_steps": 0}}, "training.local_steps = 0: input should be greater than or equal to 1"),
        ({"seed": "one"}, "seed = 'one': input should be a valid integer, unable to parse string as an integer"),
        ({"training": {"local_steps": 1, "rate": "fast"}}, "training.rate = 'fast': input should be a valid number"),
        ({"training": {"local_steps": 1, "optimizer": "none"}}, "training: an optimizer is needed"),
        ({"training": {"local_steps": 1, "layers": [1, "x"]}}, "training.layers.1 = 'x': input should be"),
        ({"seed": 13}, "take another seed"),
        ({"seed": "x", "sed": 1}, "; unknown key sed: "),
    ],
)
def test_the_line_names_key_value_and_remedy(values: dict[str, Any], line: str) -> None:
    assert line in explain(error_of(values), Settings)


def test_what_a_stranger_sent_does_not_fill_the_screen() -> None:
    many = {f"{'k' * 5000}{number}": number for number in range(50)}
    assert len(explain(error_of(many), Settings)) < 600
    assert len(explain(error_of({"seed": "9" * 100_000}), Settings)) < 300
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert show_value(nested) is None
    assert explain(error_of({"training": nested}), Settings).startswith("training: ")
    while nested:  # else freeing it would exhaust the stack of some Pythons
        nested = nested[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        pytest.param(-(10**5000), "a very large number", id="huge"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        (True, "True"),
        ("it's", '"it\'s"'),
        ({"a": 1}, None),
    ],
)
def test_values_are_shown_as_they_were_written(value: object, shown: str | None) -> None:
    assert show_value(value) == shown


def test_a_caller_may_show_values_in_its_own_way() -> None:
    error = error_of({"training": {"local_steps": 1, "optimizer": "none"}})
    assert explain(error, Settings, show=lambda value: f"<{type(value).__name__}>").startswith("training = <dict>: an ")


def test_the_place_alone_quotes_no_value() -> None:
    assert locate_first_error(error_of({"training": {"local_steps": "secret"}})) == "training.local_steps"
    assert locate_first_error(error_of({"seed": 13})) == ""
