"""`fedglm` in a process that has no torch, on a model that passes for a light release: numpy in place of the graph.

Run as a program, this file is that process. What is tested so is all that lies around a session; and it starts in a
second, where torch takes six.
"""

import json
import shutil
import sys
import types

from source_tree import SUPPORT


def pass_for_light(model, folder):
    """Copy a saved model, with what makes it look like a light release."""
    shutil.copytree(model, folder)
    (folder / "manifest.json").touch()
    return folder


def light_command(*arguments):
    """The command line of such a process, and its environment."""
    return [sys.executable, __file__, *map(str, arguments)], SUPPORT | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def open_light(folder, *, keys, threads, **_):
    """In place of `fedglm.inference.opening.open_light`."""
    from numpy_glm import NumpyGlm
    from safetensors.numpy import load_file

    from fedglm.inference.inputs.model_inputs import open_inputs

    config = json.loads((folder / "config.json").read_text())
    session = NumpyGlm(load_file(folder / "model.safetensors"), config)
    facts = {"verified": bool(keys), "provenance": "nobody signed it", "threads": threads}
    return types.SimpleNamespace(session=session, inputs=open_inputs(folder, config), facts=facts, costs=None)


if __name__ == "__main__":
    for name in ("torch", "transformers", "flwr", "tokenizers", "sklearn"):
        sys.modules[name] = None  # an import would fail
    sys.modules["fedglm.inference.opening"] = types.SimpleNamespace(open_light=open_light)
    from fedglm.cli.main import main

    main()
