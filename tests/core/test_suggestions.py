"""What an error says after a name that is unknown."""

import pytest

from fedglm.core.suggestions import did_you_mean, find_near_names, list_choices


@pytest.mark.parametrize(
    ("name", "known", "question"),
    [
        ("epsilom", ["delta", "epsilon", "unit"], "did you mean epsilon?"),
        ("local_step", ["local_steps", "local_stop", "seed"], "did you mean local_steps or local_stop?"),
        ("xyz", ["delta", "unit"], "did you mean delta or unit?"),
        ("xyz", [], "it has none"),
    ],
)
def test_the_near_names_or_all_of_them_are_asked_for(name: str, known: list[str], question: str) -> None:
    assert did_you_mean(name, known) == question
    assert did_you_mean(name, iter(known)) == question


def test_names_of_others_are_quoted_and_all_listed() -> None:
    fields = ["notes", "note 2", "age"]
    assert list_choices("note", fields) == "did you mean 'notes' or 'note 2'? there are: notes, note 2, age"
    assert list_choices("zzz", iter(fields)) == "there are: notes, note 2, age"


def test_how_near_and_how_many_is_for_the_caller_to_say() -> None:
    known = ["notes", "noted", "nodes", "note"]
    assert len(find_near_names("notez", known)) == 3
    assert len(find_near_names("notez", known, count=1)) == 1
    assert find_near_names("notez", known, cutoff=0.99) == []
