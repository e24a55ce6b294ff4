"""What `fedglm client check` says of a site's records: rows that cannot be used are counted, and keep no node back."""

import pytest
from preflight_records import DATA, PERSON, look, one, write_records
from site_folders import make_project, make_site, write_site_file

from fedglm.client.site.folder import open_site
from fedglm.core.findings import failures

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


@pytest.fixture
def site(tmp_path, project):
    made = make_site(tmp_path, project, data=DATA, policy={"declare_units": 20, "unit": "patient"})
    write_records(made)
    return made


@pytest.mark.parametrize(
    ("content", "said", "remedy"),
    [
        (f"patient,note\np1,{PERSON}\n", "of 2 fields none is called 'ill'", "name the fields in line 1"),
        (f"patient,notes,ill\np1,{PERSON},1\n", "none is called 'note'", "did you mean 'notes'?"),
        (f"{PERSON},x,1\n{PERSON},y,1\n", "of 3 fields none is called 'note'", "line 1"),
        (f"patient,patient\np1,{PERSON}\n", "two fields have the same name", "correct the file"),
        (b"\xff,note,ill\n", "line 1: not UTF-8", "correct the file"),
    ],
)
def test_a_file_that_is_not_what_site_toml_says(site, content, said, remedy):
    write_records(site, content)
    found = one(site, "data", timeout_s=0.2)
    assert (found.level, said in found.detail, remedy in found.remedy) == ("failure", True, True), found


@pytest.mark.parametrize(
    ("row", "said", "remedy"),
    [
        (f"p9,{PERSON},,1", "1 row of a class that is not named (first in line 42)", "data.class_names"),
        (f"p9,{PERSON},2,1", "1 row of a class that is not named (first in line 42)", "data.class_names"),
        (f",{PERSON},1,1", "1 row without a unit (first in line 42)", "name the unit"),
        (f'p9,"{PERSON},1,1', "1 row that cannot be parsed (first in line 42)", "quote values"),
        (f"p9,{PERSON},1,1,{PERSON}", "1 row that cannot be parsed (first in line 42)", "quote values"),
        (f"p9,{PERSON}".encode() + b"\xff,1,1", "1 row not in UTF-8 (first in line 42)", "UTF-8"),
        (f"p9,{PERSON * 100_000},1,1", "1 row longer than a row may be (first in line 42)", "in parts"),
        ("p9,,1,1", "1 row without a text (first in line 42)", "nothing"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_and_keeps_no_node_from_starting(site, row, said, remedy):
    row = row if isinstance(row, bytes) else row.encode()
    with (site.folder / "records.csv").open("ab") as file:
        file.write(row + b"\n")
    first, second = look(site, "data", timeout_s=0.2)
    assert (first.level, "40 rows, 20 values of patient" in first.detail) == ("ok", True), first
    assert (second.level, said in second.detail, remedy in second.remedy) == ("warning", True, True), second
    assert "left out in every run" in second.detail
    assert failures([first, second]) == []


@pytest.mark.parametrize(
    ("content", "said", "remedy"),
    [
        (f"patient,note,ill\np1,{PERSON},1\np1,{PERSON},0\n", "2 rows, 1 values of patient: one", "data.unit_field"),
        ("patient,note,ill\n", "0 rows, 0 values of patient: one is needed", "data.unit_field"),
    ],
)
def test_too_few_units_keep_no_node_from_starting(site, content, said, remedy):
    write_records(site, content)
    found = look(site, "data", timeout_s=0.2)[0]
    assert (found.level, said in found.detail, remedy in found.remedy) == ("warning", True, True), found


def test_a_feature_that_is_no_number_counts_as_missing(site):
    write_site_file(site.folder, data={"source": "records.csv", "feature_fields": ["age", "note"]})
    first, second = look(open_site(site.folder), "data", timeout_s=0.2)
    assert (first.level, "40 rows" in first.detail) == ("ok", True)
    assert "40 rows with a feature that is no number and counts as missing (first in line 2)" in second.detail
    assert "left out" not in second.detail


def test_a_field_that_no_row_has_is_named(site):
    """Of JSON lines, which have no line of names."""
    (site.folder / "records.jsonl").write_text('{"note": "a", "p": 1}\n{"note": "b", "p": 2}\n')
    write_site_file(site.folder, data={"source": "records.jsonl", "text_field": "note", "unit_field": "patient"})
    found = look(open_site(site.folder), "data", timeout_s=0.2)
    assert [finding.level for finding in found] == ["warning"] * 3
    assert "no row has a field 'patient'" in found[1].detail


def test_classes_that_no_one_named(site):
    write_site_file(site.folder, data={name: value for name, value in DATA.items() if name != "class_names"})
    _, found = look(open_site(site.folder), "data", timeout_s=0.2)
    assert (found.level, "names no classes" in found.detail) == ("warning", True)
    assert "list in data.class_names all that ill may hold" in found.remedy


@pytest.mark.parametrize(
    ("data", "level", "said"),
    [
        ({"source": "gone.csv"}, "failure", "there is no such file"),
        ({"source": "records.csv", "public_reference": "gone.csv"}, "failure", "public_reference"),
        ({"source": "breast-cancer", "share": "1/5"}, "ok", "500 rows, 500 units; of which this site is part 1/5"),
        ({"source": "records.csv"}, "ok", "40 rows, 40 units"),
    ],
)
def test_other_sources(site, data, level, said):
    write_site_file(site.folder, data=data)
    found = one(open_site(site.folder), "data", timeout_s=0.2)
    assert (found.level, said in found.detail) == (level, True), found
