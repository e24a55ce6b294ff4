"""The page of a light model, from its record: every figure, what was not measured, and no markup from outside."""

import html
import json
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from light_records import light_record
from run_files import HOSTILE, checked, read

from fedglm.reports.light.write import write_light_page
from fedglm.run_folder.record import ReportError


def write(folder, record):
    write_light_page(json.loads(json.dumps(record)), folder / "light.html")
    return folder / "light.html"


def test_every_figure_of_the_record_is_on_the_page(tmp_path):
    path = write(tmp_path, light_record())
    checked(path)
    text = read(path)
    for figure in (
        *("20.3 times smaller", "+4.30%", "93.9 kB", "1.91 MB", "1.595", "1.529", "at least 20x smaller", "seed 7"),
        *("14.1x", "24.6x", "+7.10%", "briefly", "int8, cut", "+180.0%", "manifest.sig", "87,000", "3,404"),
        *("476,736", "81,264", "± 0.013", "0.0667 ms", "95.8 MB", "90.0%", "ternary -> int2", "0.99850", "16,384"),
        *("epsilon 3", "1,204 sequences", "5 min 12 s", "torch 2.13.0", "adapt to the public text", "power"),
        *("needs a person's judgement", "+5.00%", "1 layer deviates (cosine below 0.995)"),
        *(
            "layers.1.mlp.down_proj got the next more bits: loss 1.612 to 1.595, 92,800 to 93,941 bytes; kept",
            "4; 6 more came from the cache",
        ),
    ):
        assert figure in text, figure
    assert "None" not in text
    assert "nan" not in text


def test_pictures_say_in_words_what_they_show(tmp_path):
    page, _ = checked(write(tmp_path, light_record()))
    labels = [node.get("aria-label") for node in ET.fromstring(page).iter("svg")]  # noqa: S314
    assert len(labels) == 3
    assert "tolerance +5.00%, goal 20.0x" in labels[0]
    assert "released: 20.3x at +4.30%" in labels[0]
    assert "weights.safetensors 87.0 kB" in labels[1]
    assert "8 layers: from 0.995 to 0.9985" in labels[2]


def test_a_search_that_released_nothing_says_so_first(tmp_path):
    path = write(tmp_path, light_record(met=False))
    page, _ = checked(path)
    text = read(path)
    assert "No light model within the goals" in text
    assert "The nearest within the tolerance is ternary, cut : 20.3x at +4.30%." in text.replace("cut:", "cut :")
    assert page.index("Nothing was released") < page.index("What was tried")
    assert "On disk" not in text
    near = read(write(tmp_path, light_record(met=False, nearest=None, frontier=[], rows=[], left_out=[])))
    assert "Nothing that was tried is within the tolerance." in near


@pytest.mark.parametrize("layers", [0, 1, 41, 200])
def test_sizes_small_and_large(layers, tmp_path):
    path = write(tmp_path, light_record(layers=layers))
    checked(path)
    assert path.stat().st_size < 400_000


def test_what_was_not_measured_is_called_so(tmp_path):
    record = light_record()
    keys = set(record["rows"][0]) - {"name"}
    record["rows"] = [{"name": "bare"} | dict.fromkeys(keys)]
    text = read(write(tmp_path, record | {"device": None, "size_ratio": None, "bytes": None, "loss_rise": None}))
    assert text.count("not measured") > len(keys)
    assert "None" not in text


@pytest.mark.usefixtures("unrendered")
def test_hostile_names_stay_text(tmp_path):
    record = light_record(
        goals=HOSTILE, name=HOSTILE, text=HOSTILE, privacy=HOSTILE, device=HOSTILE, versions={HOSTILE: HOSTILE},
        files={HOSTILE: 1}, limits=[HOSTILE], not_measured=["</li><b>"], stages=[HOSTILE],
        left_out=[{"name": '"><b>', "excess": 1}],
    )  # fmt: skip
    record["rows"][0]["name"] = record["layers"][0]["name"] = record["frontier"][0]["name"] = HOSTILE
    page = write(tmp_path, record).read_text(encoding="utf-8")
    root = ET.fromstring(page)  # noqa: S314
    assert root.find(".//script") is None
    assert root.find(".//li/b") is None
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "<script>alert('x')</script>" in html.unescape(page)


def test_the_run_s_own_held_out_records_are_beside_the_public_text_or_the_reason_is(tmp_path):
    assert "held-out records" not in read(write(tmp_path, light_record()))
    reason = read(write(tmp_path, light_record(own_records="the run is no simulation")))
    assert "Not measured on the run's own held-out records: the run is no simulation." in reason
    record = light_record(own_records="2 that are in the public text too were left out")
    for row, loss in zip(record["rows"], (1.25, 1.5, None, None, None, 1.55), strict=True):
        if loss is not None:
            row |= {"own_loss": loss, "own_deviation": 0.01, "own_count": 12_345, "own_metric_value": 4.0}
            row["own_loss_rise"] = loss / 1.5 - 1
    text = read(write(tmp_path, record))
    for said in ("1.550", "+3.33%", "12,345", "2 that are in the public text", "the chosen one's loss there is +24.0%"):
        assert said in text, said
    assert "--text names a nearer one" in text
    near = read(write(tmp_path, record | {"tolerance": 0.3}))
    assert "--text names a nearer one" not in near


def test_what_the_verification_of_the_layers_came_to_is_said(tmp_path):
    def said(**changes):
        return read(write(tmp_path, light_record(repair=light_record()["repair"] | changes)))

    assert "No layer deviates: each one's outputs have a cosine of at least 0.995" in said(deviating=[], way=None)
    assert "No repair: the plan asks for none." in said(way=None, outcome="the plan asks for none")
    assert "layers.1.mlp.down_proj got more training" in said(way="training")
    many = said(layers=[f"model.layers.{number}.mlp.down_proj.weight" for number in range(9)])
    assert "layers.3.mlp.down_proj and 5 more got the next more bits" in many
    assert "not kept: it is beyond the goals" in said(kept=False, outcome="it is beyond the goals")
    assert "were not verified" in read(write(tmp_path, light_record(repair=None)))


def test_the_same_record_gives_the_same_bytes(tmp_path):
    first = write(tmp_path, light_record()).read_bytes()
    assert write(tmp_path, light_record()).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"goals": None}, "goals"),
        ({"rows": [{"name": 3}]}, "rows.0.name"),
        ({"rows": 7}, "rows"),
        ({"frontier": [{"name": "x", "size_ratio": 0, "loss_rise": 1}]}, "frontier.0.size_ratio"),
        ({"files": {"x": -1}}, "files.x"),
        ({"loss": math.nan}, "loss"),
        ({"tolerance": "much"}, "tolerance"),
        ({"reference_bytes": 10**400}, "reference_bytes"),
    ],
)
def test_a_malformed_record_is_one_clear_error(changes, key, tmp_path):
    with pytest.raises(ReportError, match="no record of fedglm lighten") as caught:
        write_light_page(light_record(**changes), tmp_path / "light.html")
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "light.html").exists()


ODD = st.sampled_from([None, math.nan, math.inf, -1, 0, 1e300, 10**400, True, "", "x", [], [1], {}, {"loss": "y"}])


@pytest.mark.usefixtures("unrendered")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(sorted(light_record())), ODD, max_size=4),
    row=st.dictionaries(st.sampled_from(sorted(light_record()["rows"][0])), ODD, max_size=3),
    layer=st.dictionaries(st.sampled_from(sorted(light_record()["layers"][0])), ODD, max_size=2),
)
def test_odd_values_are_a_page_or_an_error(changes, row, layer, tmp_path):
    record = light_record()
    record["rows"][2].update(row)
    record["layers"][1].update(layer)
    try:
        write_light_page(record | changes, tmp_path / "light.html")
    except ReportError:
        return
    checked(tmp_path / "light.html")
