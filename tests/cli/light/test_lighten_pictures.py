"""`fedglm lighten --diagnose` with its picture rendered; test_lighten.py leaves pictures out."""

import pytest
from light_plans import write_text
from saved_models import save_model


@pytest.mark.slow
def test_a_diagnosis_is_a_table_and_a_picture(fedglm, tmp_path):
    model, text = save_model("language", tmp_path / "model"), write_text(tmp_path / "public.jsonl")
    done = fedglm("lighten", model, "--diagnose", "--text", text, "--out", tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert "The articles' rules" in done.out
    assert "written: " in done.out
