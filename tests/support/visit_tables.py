"""A table of visits to three hospitals, as rows and as a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def visits(n: int = 60) -> list[dict[str, Any]]:
    return [
        {
            "hospital": f"h{i % 3}",
            "patient": f"p{i // 2}" if i % 3 else f"q{i // 4}",
            "label": ["well", "ill"][i % 2],
            "text": f"visit number {i} " * (1 + i % 5),
            "age": i,
            "heat": None if i % 7 == 0 else 36 + i / 30,
        }
        for i in range(n)
    ]
