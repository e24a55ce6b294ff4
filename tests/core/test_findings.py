"""Findings of the checks before a start."""

from fedglm.core.findings import failure, failures, ok, warning

FINE = ok("disk", "plenty")
SOON = warning("certificate", "ends soon", "renew it")
AWAY = failure("server", "nothing listens", "ask", transient=True)
BROKEN = failure("keys", "are gone", "make them")


def test_only_a_failure_that_does_not_mend_itself_forbids_a_start() -> None:
    assert failures([FINE, SOON, AWAY, BROKEN]) == [BROKEN]


def test_a_remedy_follows_the_detail_where_there_is_one() -> None:
    assert SOON.sentence() == "ends soon; renew it"
    assert SOON.sentence(": ") == "ends soon: renew it"
    assert FINE.sentence() == "plenty"


def test_the_keys_of_the_json_stay() -> None:
    assert AWAY.as_json() == {
        "check": "server",
        "level": "failure",
        "said": "nothing listens",
        "remedy": "ask",
        "passing": True,
    }
    assert list(AWAY.as_json()) == ["check", "level", "said", "remedy", "passing"]
