"""Run folders as tests write them, and the report pages as tests read them."""

import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert('x')</script> \"q\" & $a^$ \u202eevil \x00"
"""A name that would act where a page wrote it as it is."""

PRIVACY = {
    "privacy": "No privacy guarantee: the updates were sent as they are.",
    "guarantees": [{"code": "none", "detail": "the updates were sent as they are."}],
}


def site(name: str, index: int, *, alone: bool = True) -> dict[str, Any]:
    other = {"loss": 0.3, "accuracy": 0.8125, "perplexity": 1.35} if alone else None
    return {
        "name": name,
        "train": 101 + index,
        "held_out": 32,
        "units": 133 + index,
        "loss": 0.2,
        "accuracy": 0.9375,
        "perplexity": 1.22,
        "alone": other,
    }


def run_files(rounds: int = 6, nodes: int = 4, metric: str = "accuracy", **changes: Any) -> tuple[list[Any], Any]:
    """Lines and summary of a run: 100-byte messages up, 200 down, 10,000 dense each way, the loss halved each round."""
    lines = [
        {
            "round": number,
            "loss": 2.0**-number,
            metric: 0.9 if metric == "accuracy" else math.exp(2.0**-number),
            "uplink_bytes": 100 * nodes,
            "downlink_bytes": 200 * nodes,
            "dense_uplink_bytes": 10_000 * nodes,
            "dense_downlink_bytes": 10_000 * nodes,
            "nodes_sampled": nodes,
            "nodes_accepted": nodes,
            "nodes_rejected": 0,
            "epsilon": None,
            "wall_s": 0.51,
            "virtual_s": None,
        }
        for number in range(1, rounds + 1)
    ]
    total = rounds * nodes
    baseline = {"loss": 0.0421, "accuracy": 0.9713, "perplexity": 1.043}
    summary = {
        "scenario": "hospital",
        "seed": 4711,
        "rounds": rounds,
        "parameters": 93120,
        "codec": "topk-sign",
        "density": 0.05,
        "loss": 0.1372,
        metric: 0.9561 if metric == "accuracy" else 5.217,
        "metric": metric,
        "uplink_bytes": 100 * total,
        "downlink_bytes": 200 * total,
        "dense_uplink_bytes": 10_000 * total,
        "dense_downlink_bytes": 10_000 * total,
        "uplink_ratio": 0.01,
        "downlink_ratio": 0.02,
        "roundtrip_ratio": 0.015,
        "epsilon": None,
        "delta": None,
        **PRIVACY,
        "model_sha256": "ab12" * 16,
        "wall_s": 41.2,
        "engine": "inline",
        "precision": "fp32",
        "nodes": nodes,
        "initial": {"loss": 0.6931, "accuracy": 0.4917, "perplexity": 257.3},
        "data": {"source": "breast-cancer", "task": "tabular-classification", "classes": ["malignant", "benign"]},
        "sites": [site(f"site-{index}", index) for index in range(nodes)],
        "baselines": {"pooled": baseline, "alone": {"loss": 0.2874, "accuracy": 0.8839, "perplexity": 1.333}},
        "versions": {"python": "3.11.7", "torch": "2.11.0", "flwr": "1.42.0", "fedglm": "0.1.0"},
    }
    summary.update(changes)
    return lines, summary


def write(folder: Path, lines: list[Any], summary: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "scenario.toml").write_text('[model]\npreset = "glm-0.1m"\n[data]\nnote = "<b>"\n', encoding="utf-8")
    return folder


class Texts(HTMLParser):
    """Collects what a reader sees, and where the page points."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                self.targets.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(path: Path) -> tuple[str, Texts]:
    """The page, after everything that holds for every page was seen to hold."""
    page = path.read_text(encoding="utf-8")
    root = ET.fromstring(page)  # noqa: S314 - our own page; stricter than a browser
    parsed = Texts()
    parsed.feed(page)
    assert root.tag == "html"
    assert root.get("lang") == "en"
    assert "script" not in parsed.tags
    assert all(re.fullmatch(r"#[\w-]+|data:,|[\w./%-]+/report\.html", target) for target in parsed.targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", page))
    assert "@import" not in page
    assert not re.search(r"https?:|//[a-z]", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {target[1:] for target in parsed.targets if target.startswith("#")} <= set(parsed.ids)
    assert parsed.tags.count("h1") == parsed.tags.count("main") == 1
    for picture in root.iter("svg"):
        assert picture.get("role") == "img"
        assert len(picture.get("aria-label") or "") > 20
        assert "#0a00" not in ET.tostring(picture, encoding="unicode")
    for grid in root.iter("table"):
        assert grid.find("caption") is not None
        assert all(cell.get("scope") in {"col", "row"} for cell in grid.iter("th"))
    return page, parsed


def read(path: Path) -> str:
    return " ".join(" ".join(checked(path)[1].texts).split())
