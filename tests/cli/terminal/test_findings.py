"""Findings as they are printed."""

import pytest

from fedglm.cli.terminal.findings import print_findings, refuse_failures
from fedglm.core.errors import FedglmError
from fedglm.core.findings import failure, ok, warning

FINE = ok("disk", "plenty")
SOON = warning("certificate", "ends [soon]", "renew it")
AWAY = failure("server", "nothing listens", "ask", transient=True)
BROKEN = failure("keys", "are gone", "make them")


def test_a_start_goes_on_where_nothing_forbids_it(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_failures([FINE, SOON, AWAY], FedglmError, lambda finding: f"{finding.check}: {finding.sentence()}")
    printed = capsys.readouterr()
    assert printed.err == "warning: certificate: ends [soon]; renew it\nwarning: server: nothing listens; ask\n"
    assert printed.out == ""


def test_the_first_that_forbids_it_is_raised_and_the_others_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    full = failure("disk", "is full")
    with pytest.raises(FedglmError, match=r"^are gone: make them$"):
        refuse_failures(
            [SOON, BROKEN, full], FedglmError, lambda finding: finding.sentence(": "), labels=("note", "also")
        )
    assert capsys.readouterr().err == "note: ends [soon]: renew it\nalso: is full\n"


def test_the_table_has_all_with_their_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([FINE, SOON, BROKEN])
    printed = capsys.readouterr().out
    for text in ("ok", "plenty", "ends [soon]", "renew it", "failure", "keys", "make them"):
        assert text in printed
