"""Environments of their own for peers that cannot share ours, made by pip once under a cache folder."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def make_environment(folder: Path, pins: Mapping[str, str]) -> Path:
    """Return the interpreter of an environment, which is made where there is none; what is done is printed.

    Raises:
        RuntimeError: It cannot be made; pip's last words say why.
    """
    python = folder / "bin" / "python"
    if python.exists():
        return python
    wanted = [f"{name}=={version}" for name, version in pins.items()]
    print(f"making an environment for {' and '.join(wanted)} in {folder} (some minutes)", flush=True)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    _run([sys.executable, "-m", "venv", unfinished])
    pip = [unfinished / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *wanted])
    unfinished.rename(folder)  # venvs are not to be moved, but nothing here starts a script of its bin folder
    return python


def _run(command: list[object]) -> None:
    words = [str(word) for word in command]
    print("  " + " ".join(words), flush=True)
    done = subprocess.run(words, capture_output=True, text=True)  # noqa: S603 - our words
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {(done.stderr or done.stdout)[-400:]}")
