"""A server that would learn, without noise or charge, whether some record lies at a site: by what the node answers.

Two data sets that differ in one record must give the same replies, in kind and size, whatever the record holds; and
the one record must not move others between training and held-out data, which no noise would hide.
"""

import json
from collections import Counter
from dataclasses import replace

import pytest
from custodies import MECHANISM
from hostile_server import Asked, Seen
from hypothesis import given, settings
from hypothesis import strategies as st
from site_folders import make_project, run_of

from fedglm.autoglm.data.row_faults import RowFaults
from fedglm.autoglm.settings import DataSettings, ModelSettings
from fedglm.autoglm.site_data import load_site
from fedglm.privacy.dp.mechanism import make_metrics_mechanism

pytestmark = pytest.mark.usefixtures("unsynced")

TRAINING = 'local_steps = 2\nbatch_size = 4\nprecision = "fp32"\ndevice = "cpu"\noptimizer = "sgd"\n'
UPDATE = '[update]\ncodec = "int8"\n'
CLASSES = ["low", "high"]
TABLE = f"""
name = "table"
[data]
source = "./nowhere.csv"
label_field = "anything"
feature_fields = ["x", "y"]
feature_ranges = {{ x = [0, 1], y = [0, 1] }}
class_names = %s
[training]
{TRAINING}{UPDATE}"""
TEXT = f'name = "text"\n[data]\nsource = "./nowhere.jsonl"\nlength = 16\n[training]\n{TRAINING}{UPDATE}'

OWN_TABLE = {"source": "records.csv", "label_field": "class", "class_names": CLASSES, "feature_fields": ["x", "y"]}
OWN_TEXT = {"source": "records.jsonl", "text_field": "note", "unit_field": "patient"}

NOISE = replace(MECHANISM, steps=2, noise_multiplier=2.0)
HEAD = b"x,y,class,patient,note\n"


def table_row(number):
    note = ["fine", '"a ""b"", c"', '12"', '""', '","'][number % 5]
    return f"0.{number % 10},0.{number % 7},{CLASSES[number % 2]},p{number // 2},{note}\n".encode()


def rows(count=12):
    return [table_row(number) for number in range(count)]


def objects(count=12):
    return [json.dumps({"note": f"note {i}", "patient": f"p{i // 2}"}).encode() + b"\n" for i in range(count)]


HOSTILE_ROWS = {
    "like any other": b"0.5,0.5,low,p1,fine\n",
    "the same again": rows()[3],
    "a new unit": b"0.5,0.5,low,p99,fine\n",
    "a class that is rare": b"0.5,0.5,HIV,p1,x\n",
    "no class": b"0.5,0.5,,p1,x\n",
    "a word for a number": b"much,0.5,low,p1,x\n",
    "a number beyond floats": b"1e999,-1e999,low,p1,x\n",
    "no unit": b"0.5,0.5,low,,x\n",
    "too few fields": b"0.5\n",
    "too many fields": b"0.5,0.5,low,p1,x,y,z\n",
    "a quote that is never closed": b'0.5,0.5,low,p1,"x\n',
    "a quote within a value": b'0.5,0.5,low,p1,"x"y\n',
    "bytes that are no text": b"0.5,0.5,low,p1,\xff\xfe\n",
    "a zero byte": b"0.5,\0,low,p1,x\n",
    "a return in its middle": b"0.5,0.5,low\rp1,x\n",
    "a text that goes on for ever": b"0.5,0.5,low,p1," + b"x" * (1 << 21) + b"\n",
    "a class that goes on for ever": b"0.5,0.5," + b"x" * (1 << 20) + b",p1,x\n",
}
HOSTILE_OBJECTS = {
    "like any other": objects()[3],
    "no JSON": b'{"note": \n',
    "no object": b'["note"]\n',
    "nothing": b"null\n",
    "nested without end": b"[" * 500_000 + b"\n",
    "half a character": b'{"note": "\\ud83d", "patient": "p1"}\n',
    "half a character for a unit": b'{"note": "x", "patient": "\\udc00"}\n',
    "a number for a text": b'{"note": 3, "patient": "p1"}\n',
    "no text": b'{"patient": "p1"}\n',
    "a blank text": b'{"note": " ", "patient": "p1"}\n',
    "a unit that is a list": b'{"note": "x", "patient": [1]}\n',
    "a unit that is not a number": b'{"note": "x", "patient": NaN}\n',
    "a number of a million digits": b'{"note": "x", "patient": ' + b"9" * 1_000_000 + b"}\n",
    "bytes that are no text": b'{"note": "\xff", "patient": "p1"}\n',
    "a text that goes on for ever": b'{"note": "' + b"x" * (1 << 21) + b'", "patient": "p1"}\n',
}


ALL = "all of them"
QUICK = {ALL, "a class that is rare", "a quote that is never closed", "no JSON"}


def each(kinds):
    """Every kind, and all at once; most by themselves only where minutes do not matter."""
    return [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in (ALL, *kinds)]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("server"))


def conversation(home, project, own, scenario, content, unit="record"):
    """What a server sees of a site from its first question to measures, all with noise."""
    noise = replace(NOISE, unit=unit)
    site = Asked(home, project, own, content, {"unit": unit})
    query = site.announce(scenario, mechanism=noise, metrics=make_metrics_mechanism(noise, 2.0))
    train = site.instruct(evaluate=True)
    again = site.instruct("evaluate", round=2, evaluate=True)
    seen = [Seen.of(reply) for reply in (query, train, again)]
    return seen, site.charges


@pytest.fixture(scope="module")
def for_table(project, tmp_path_factory):
    return conversation(tmp_path_factory.mktemp("a"), project, OWN_TABLE, TABLE % CLASSES, HEAD + b"".join(rows()))


@pytest.fixture(scope="module")
def of_text(project, tmp_path_factory):
    return conversation(tmp_path_factory.mktemp("b"), project, OWN_TEXT, TEXT, b"".join(objects()), "patient")


@pytest.mark.parametrize("kind", each(HOSTILE_ROWS))
def test_no_row_of_a_table_changes_what_a_server_sees(tmp_path, project, for_table, kind):
    hostile = HOSTILE_ROWS.values() if kind == ALL else [HOSTILE_ROWS[kind]]
    content = HEAD + b"".join([*rows()[:5], *hostile, *rows()[5:]])
    found = conversation(tmp_path, project, OWN_TABLE, TABLE % CLASSES, content)
    assert found == for_table
    assert [seen.error for seen in found[0]] == [None] * 3


@pytest.mark.parametrize("kind", each(HOSTILE_OBJECTS))
def test_no_line_of_json_changes_what_a_server_sees(tmp_path, project, of_text, kind):
    hostile = HOSTILE_OBJECTS.values() if kind == ALL else [HOSTILE_OBJECTS[kind]]
    content = b"".join([*objects()[:5], *hostile, *objects()[5:]])
    found = conversation(tmp_path, project, OWN_TEXT, TEXT, content, "patient")
    assert found == of_text
    assert [seen.error for seen in found[0]] == [None] * 3


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [HOSTILE_ROWS["no unit"]] * 3,
        pytest.param(rows(1), marks=pytest.mark.slow),
        pytest.param([HOSTILE_ROWS["a class that is rare"]], marks=pytest.mark.slow),
    ],
)
def test_nor_does_it_that_there_are_few_rows_or_none(tmp_path, project, for_table, lines):
    assert conversation(tmp_path, project, OWN_TABLE, TABLE % CLASSES, HEAD + b"".join(lines)) == for_table


@pytest.mark.parametrize(
    "names",
    [
        ["low", "high", "HIV"],
        ["low"],
        pytest.param(["low", "high", "zzz"], marks=pytest.mark.slow),
        pytest.param(["low", "HIV"], marks=pytest.mark.slow),
    ],
)
def test_a_server_that_names_a_class_learns_nothing_of_who_has_it(tmp_path, project, names):
    """It was answered as asked where no row had another class, and with an error where one had."""
    plain = HEAD + b"".join(rows())
    seen = []
    for number, content in enumerate([plain, plain + HOSTILE_ROWS["a class that is rare"], HEAD]):
        site = Asked(tmp_path / str(number), project, OWN_TABLE, content)
        seen.append(Seen.of(site.announce(TABLE % CLASSES, **asked_for(TABLE % names))))
        assert site.charges == 0
    assert seen[0] == seen[1] == seen[2]
    assert "rule recipe" in seen[0].error[1]
    assert "class_names" in seen[0].error[1]


def asked_for(scenario_toml):
    """What the plan says, also of a scenario that no server could run."""
    try:
        _, _, beside = run_of(scenario_toml)
    except ValueError:  # one class is no task
        _, _, beside = run_of(TABLE % CLASSES)
        beside["recipe"] = beside["recipe"].replace('"high",', "")
    return {**beside, "mechanism": NOISE}


# --- what no noise would hide


def sides(path, content, own, seed):
    """Each record with the side that it stands on."""
    path.write_bytes(content)
    asked = {"task": "tabular-classification", "feature_ranges": {"x": (0, 1), "y": (0, 1)}}
    if "text_field" in own:
        asked = {"task": "language-model", "length": 16}
    settings = DataSettings.model_validate({**own, **asked, "source": str(path)})
    found = load_site(settings, name="berlin", share=None, seed=seed, model=ModelSettings(), faults=RowFaults())[1]
    counted = Counter()
    for side, part in (("train", found.train), ("held out", found.held_out)):
        for tokens, label in zip(part.input_ids.tolist(), part.labels.tolist(), strict=True):
            counted[side, tuple(tokens), label] += 1
    return counted


def test_one_record_more_moves_no_other_between_training_and_held_out_data(tmp_path):
    for unit in ({}, {"unit_field": "patient"}):
        own = OWN_TABLE | unit
        before = sides(tmp_path / "r.csv", HEAD + b"".join(rows(40)), own, 7)
        for kind, row in HOSTILE_ROWS.items():
            for at in (0, 20, 40):
                lines = [*rows(40)[:at], row, *rows(40)[at:]]
                after = sides(tmp_path / "r.csv", HEAD + b"".join(lines), own, 7)
                assert not before - after, f"{kind}: a record is gone, or stands on the other side"
                assert sum((after - before).values()) <= 1
    before = sides(tmp_path / "r.jsonl", b"".join(objects(40)), OWN_TEXT, 7)
    for kind, row in HOSTILE_OBJECTS.items():
        after = sides(tmp_path / "r.jsonl", row + b"".join(objects(40)), OWN_TEXT, 7)
        assert not before - after, f"{kind}: a record is gone, or stands on the other side"


def test_about_the_share_that_was_asked_for_is_held_out(tmp_path):
    found = sides(tmp_path / "r.csv", HEAD + b"".join(rows(2000)), OWN_TABLE | {"unit_field": "patient"}, 3)
    held_out = sum(count for (side, *_), count in found.items() if side == "held out")
    # 1000 patients of two rows, each with probability 0.2: a standard deviation of 25 rows
    assert abs(held_out - 400) < 6 * 25


honest = st.lists(st.integers(0, 10**6), max_size=8)
wild = st.one_of(
    st.sampled_from(sorted(HOSTILE_ROWS.values())),
    st.binary(max_size=60),
    st.lists(st.text(alphabet='a1.,""\r\n\0é', max_size=5), max_size=7).map(lambda cells: ",".join(cells).encode()),
)


# Each kind of hostile row stands at three places in the test above: here are the bytes that nobody thought of.
@settings(max_examples=max(60, settings.default.max_examples), deadline=None)
@given(honest, honest, wild, st.sampled_from([{}, {"unit_field": "patient"}]))
def test_whatever_one_line_holds_all_others_are_read_and_stay_where_they_are(tmp_path_factory, first, then, row, unit):
    folder = tmp_path_factory.mktemp("sides")
    line = row.replace(b"\n", b" ") + b"\n"
    before = sides(folder / "r.csv", HEAD + b"".join(map(table_row, first + then)), OWN_TABLE | unit, 7)
    lines = [*map(table_row, first), line, *map(table_row, then)]
    after = sides(folder / "r.csv", HEAD + b"".join(lines), OWN_TABLE | unit, 7)
    assert not before - after
    assert sum((after - before).values()) <= 1


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(honest, wild, honest)
def test_whatever_one_record_holds_a_server_sees_the_same(tmp_path_factory, project, for_table, first, row, then):
    content = HEAD + b"".join([*map(table_row, first), row + b"\n", *map(table_row, then)])
    found = conversation(tmp_path_factory.mktemp("site"), project, OWN_TABLE, TABLE % CLASSES, content)
    assert found == for_table
