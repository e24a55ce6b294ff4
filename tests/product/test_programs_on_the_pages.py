"""The programs that docs/lightweight.md shows run as they stand there, on releases of the same names."""

import re

import numpy as np
import pytest
from light_releases import KEY
from saved_models import CLASSES
from source_tree import ROOT
from used_releases import write_used_release

PAGE = (ROOT / "docs" / "lightweight.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("releases")
    write_used_release(folder / "release", KEY)
    write_used_release(folder / "smaller", KEY, fill=0.5)
    return folder


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.rpartition("import ")[2].split()[0])
def test_it_runs(program, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    rows = [{"age": age, "heat": heat} for age, heat in rng.uniform((0, 35), (100, 43), (40, 2)).tolist()]
    known = {"rows": rows, "labels": rng.choice(CLASSES, len(rows)).tolist()}
    exec(compile(program, "docs/lightweight.md", "exec"), known)  # noqa: S102 - our own page
    printed = capsys.readouterr().out
    if "found" in known:
        assert set(known["found"]) <= set(CLASSES)
    else:
        assert "by" in printed
