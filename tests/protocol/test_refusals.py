"""A refusal on its way to the server: its rule is a field at both ends."""

import pytest
from flwr.app import Error
from flwr.common.constant import ErrorCode

from fedglm.privacy.errors import Refusal
from fedglm.protocol.refusals import RefusedReply, read_refusal, to_error

REFUSED = int(ErrorCode.MOD_FAILED_PRECONDITION)


def test_a_refusal_arrives_with_its_rule_and_its_words():
    refusal = Refusal("epsilon-budget", "with what was spent before, this release would exceed epsilon 8")
    assert read_refusal(to_error(refusal)) == RefusedReply(refusal.rule, str(refusal))


def test_an_error_of_another_number_is_no_refusal_whatever_it_says():
    assert read_refusal(Error(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), str(Refusal("plan", "no")))) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "the node says: refused by rule epsilon-budget: no",
        "refused by rule Plan: no",
        "refused by rule x",
        f"refused by rule {'x' * 65}: no",
        "refused by rule : no",
    ],
)
def test_a_refusal_that_names_no_rule_is_one_all_the_same(text):
    assert read_refusal(Error(REFUSED, text)) == RefusedReply(None, text)
