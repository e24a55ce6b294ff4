"""The page of a diagnosis, from its record: the heat map, redundancy, rules, and no markup from outside."""

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest
from light_records import diagnosis_record
from run_files import HOSTILE, checked, read

from fedglm.reports.light.diagnosis import write_diagnosis_page
from fedglm.run_folder.record import ReportError


def write(folder, record):
    write_diagnosis_page(json.loads(json.dumps(record)), folder / "diagnosis.html")
    return folder / "diagnosis.html"


def test_figures_rules_and_redundancy_are_on_the_page(tmp_path):
    path = write(tmp_path, diagnosis_record())
    checked(path)
    text = read(path)
    for said in (
        *("1 of 2 rules of the articles hold here", "does not hold", "30% removed: +0.451", "3 of 24", "text_run"),
        *("Loss 1.432 nats on 32 sequences. Text: 64 sequences of docstrings.", "2 of 8", "0.52", "6 in all"),
        *("2 kv-group 1", "+0.130", "30% removed", "1,013", "not measured"),
    ):
        assert said in text, said
    assert "channel 5" not in text  # single channels count in the rules, and have no row
    assert "None" not in text


def test_the_heat_map_is_darker_where_the_rank_is_higher(tmp_path):
    page, _ = checked(write(tmp_path, diagnosis_record()))
    picture = next(node for node in ET.fromstring(page).iter() if node.get("aria-label", "").startswith("12 groups"))  # noqa: S314
    assert "the most sensitive layer is 2 layer; the most sensitive ffn is 2 ffn" in picture.get("aria-label")
    styles = [node.get("style", "") for node in picture.iter() if "opacity" in node.get("style", "")]
    opacities = [float(re.search(r"opacity: ?([0-9.]+)", style)[1]) for style in styles]
    assert len(opacities) == 12 * 8
    layers, rows = opacities[: 3 * 8], [opacities[first : first + 8] for first in range(0, 24, 8)]
    assert all(len(set(row)) == 1 for row in rows)  # the record gives all measures of a group the same rank
    assert layers == sorted(layers)


@pytest.mark.parametrize("layers", [0, 1, 24])
def test_sizes_small_and_large(layers, tmp_path):
    path = write(tmp_path, diagnosis_record(layers=layers))
    checked(path)
    assert path.stat().st_size < 400_000


@pytest.mark.usefixtures("unrendered")
def test_hostile_names_stay_text(tmp_path):
    record = diagnosis_record(text=HOSTILE, model=HOSTILE, rules=[{"rule": HOSTILE, "holds": True, "found": HOSTILE}])
    record["rows"][1]["name"] = record["curves"][0]["order"] = HOSTILE
    page = write(tmp_path, record).read_text(encoding="utf-8")
    assert ET.fromstring(page).find(".//script") is None  # noqa: S314
    assert "\u202e" not in page


def test_the_same_record_gives_the_same_bytes(tmp_path):
    first = write(tmp_path, diagnosis_record()).read_bytes()
    assert write(tmp_path, diagnosis_record()).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"loss": None}, "loss"),
        ({"rows": [{"name": 3}]}, "rows.0"),
        ({"loss": math.inf}, "loss"),
        ({"rules": 3}, "rules"),
    ],
)
def test_a_malformed_record_is_one_clear_error(changes, key, tmp_path):
    with pytest.raises(ReportError, match="no diagnosis of fedglm lighten") as caught:
        write_diagnosis_page(diagnosis_record(**changes), tmp_path / "page.html")
    assert key in str(caught.value)
    assert not (tmp_path / "page.html").exists()
