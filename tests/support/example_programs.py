"""The programs in examples/, as modules: a worker process imports them by way of this one."""

import importlib.util

from source_tree import ROOT

EXAMPLES = ROOT / "examples"


def load(name):
    """The module; what stands below `if __name__ == "__main__"` is not run."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flower_nodes(state_dir):
    """The ClientApp of the Flower app."""
    return load("flower_app").make_client_app(state_dir)
