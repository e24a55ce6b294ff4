"""Rows that cannot be used: left out and counted, and all others read as if they were not there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.autoglm.data.lines import MAX_ROW_BYTES
from fedglm.autoglm.data.reading import MissingField, read_rows
from fedglm.autoglm.data.row_faults import RowError, RowFaults
from fedglm.autoglm.errors import DataError

GOOD = b"a,b\n1,2\n"


def read(path: Path, content: bytes, faults: RowFaults, **options: object) -> list[dict[str, object]]:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return [row for _, row in read_rows(path, faults=faults, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_each_kind_is_counted_with_the_line_of_its_first(tmp_path: Path, name: str) -> None:
    faults = RowFaults()
    content = GOOD + b'1\n1,"2\n\xff,2\n\n3,4\n' + b"x" * (3 * MAX_ROW_BYTES) + b",2\n5,6\n" + b"7,8"
    rows = read(tmp_path / name, content, faults)
    assert rows == [{"a": str(a), "b": str(a + 1)} for a in (1, 3, 5, 7)]
    assert faults.counts == {"syntax": 2, "encoding": 1, "length": 1}
    assert faults.first == {"syntax": 3, "encoding": 5, "length": 8}
    assert faults.in_words() == (
        "1 row not in UTF-8 (first in line 5), 1 row longer than a row may be (first in line 8), "
        "2 rows that cannot be parsed (first in line 3)"
    )
    assert faults.in_words(but={"syntax", "length", "encoding"}) == ""


def test_without_a_counter_the_same_rows_are_errors(tmp_path: Path) -> None:
    for row in (b"1\n", b'1,"2\n', b"\xff,2\n"):
        (tmp_path / "x.csv").write_bytes(GOOD + row)
        with pytest.raises(RowError, match=r"x\.csv, line 3: "):
            list(read_rows(tmp_path / "x.csv"))


def test_what_is_wrong_with_the_whole_file_is_an_error_all_the_same(tmp_path: Path) -> None:
    for content, said in ((b"a,a\n1,2\n", "same name"), (b"\xff\n1,2\n", "line 1: not UTF-8"), (b'"a\n1\n', "line 1")):
        with pytest.raises(DataError, match=said):
            read(tmp_path / "x.csv", content, RowFaults())
    for content in (b"a,c\n", b"a,c\n1,2\n", b""):  # whether there are rows makes no difference
        with pytest.raises(MissingField) as caught:
            read(tmp_path / "x.csv", content, RowFaults(), fields=["a", "b"])
        assert caught.value.name == ("b" if content else "a")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(GOOD)[:-6])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_rows(tmp_path / "x.csv.gz", faults=RowFaults()))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n"])
def test_a_file_without_rows_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "x.csv", content, RowFaults()) == []
    assert read(tmp_path / "x.jsonl", b"\n", RowFaults()) == []


def test_a_line_break_within_quotes_is_for_files_that_are_said_to_have_them(tmp_path: Path) -> None:
    content = b'a,b\n1,"two\nlines"\n3,4\n'
    faults = RowFaults()
    assert read(tmp_path / "x.csv", content, faults) == [{"a": "3", "b": "4"}]
    assert faults.counts == {"syntax": 2}
    faults = RowFaults(line_breaks=True)
    assert read(tmp_path / "x.csv", content, faults) == [{"a": "1", "b": "two\nlines"}, {"a": "3", "b": "4"}]
    assert not faults.counts


def test_there_a_quote_that_is_never_closed_costs_its_own_line_alone(tmp_path: Path) -> None:
    rows = [b'1,"two\nlines"\n', b"3,4\n", b'5,"six"\n'] * 3
    whole = read(tmp_path / "x.csv", b"a,b\n" + b"".join(rows), RowFaults(line_breaks=True))
    for at in range(len(rows) + 1):
        for stray in (b'9,"open\n', b'"\n', b'9,"a"b\n'):
            faults = RowFaults(line_breaks=True)
            content = b"a,b\n" + b"".join([*rows[:at], stray, *rows[at:]])
            assert read(tmp_path / "x.csv", content, faults) == whole
            assert faults.counts == {"syntax": 1}
    long = b'9,"open\n' + b"1,2\n" * (MAX_ROW_BYTES // 4 + 10)
    assert len(read(tmp_path / "x.csv", b"a,b\n" + long, RowFaults(line_breaks=True))) == MAX_ROW_BYTES // 4 + 10


@given(st.lists(st.binary(max_size=30)), st.booleans())
def test_no_bytes_make_reading_fail(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], breaks: bool) -> None:
    folder = tmp_path_factory.mktemp("rows")
    good = json.dumps({"a": "1", "b": "2"}).encode()
    for name, head, row in (("x.csv", b"a,b\n", b"1,2"), ("x.jsonl", b"", good)):
        rest = [line.replace(b"\n", b"") for line in lines]
        content = head + b"\n".join([row, *rest, row, b""])
        rows = read(folder / name, content, RowFaults(line_breaks=breaks))
        assert rows[0] == {"a": "1", "b": "2"}
        assert breaks or rows[-1] == {"a": "1", "b": "2"}
