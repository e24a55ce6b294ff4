"""What a node's worker leaves out of its libraries changes its memory, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedglm.client.supernode.lean_imports import import_lean

TRAINED = """
import hashlib, torch
from transformers import GlmForCausalLM
from fedglm.autoglm.models.presets import find_preset, make_glm_config

torch.manual_seed(1)
torch.set_num_threads(1)
model = GlmForCausalLM(make_glm_config(find_preset("glm-0.5m"), vocab_size=64, pad_id=0, bos_id=1, eos_id=2, tied=True))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
words = torch.randint(0, 64, (4, 16))
for _ in range(3):
    optimizer.zero_grad()
    model(input_ids=words, labels=words).loss.backward()
    optimizer.step()
weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
print(hashlib.sha256(weights.numpy().tobytes()).hexdigest())
"""
LEAN = "from fedglm.client.supernode.lean_imports import import_lean; import_lean()\n"
PROGRAM = Path(__file__).parents[2] / "support" / "lean_kinds.py"
OFTEN = ["folder llama language lora", "noise hooks table none"]
"""Kinds of run that bring a library of their own: peft and a model that is no GLM, and Opacus."""


def run(*lines):
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """What a worker's process prints: kinds of run that worked, the weights that it trained, what it loaded beside."""
    heavy = ("accelerate", "pandas", "peft", "PIL", "sklearn", "sympy", "torchvision", "torch._dynamo.utils")
    code = f"import sys; print([name for name in {heavy} if name in sys.modules])"
    worker = "import fedglm.client.supernode.worker, fedglm.client.site.site_node"
    kinds = f"import sys; sys.path.append({str(PROGRAM.parent)!r}); from lean_kinds import run_kinds"
    often = f"run_kinds({str(tmp_path_factory.mktemp('kinds'))!r}, {OFTEN})"
    return run(LEAN, worker, kinds, often, TRAINED, code)


@pytest.mark.slow
def test_a_model_trains_to_the_same_bits(lean):
    assert lean[1:2] == run(TRAINED)


def test_nothing_of_what_is_left_out_is_loaded(lean):
    assert lean[2] == "[]"


def test_kinds_of_run_that_need_other_libraries_work(lean):
    assert json.loads(lean[0]) == dict.fromkeys(OFTEN, True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_kind_of_run_works(tmp_path):
    """Each preset, task, precision, clipping mode and codec, folders of other models; with and without adapters."""
    done = subprocess.run([sys.executable, PROGRAM, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    worked = json.loads(done.stdout)
    assert [kind for kind in worked if not worked[kind]] == [], done.stderr
    assert set(OFTEN) < set(worked)
    assert len(worked) > 50


def test_where_transformers_is_there_already_nothing_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    before = dict(sys.modules)
    import_lean()
    assert sys.modules == before


@pytest.mark.slow
def test_who_wants_it_after_all_gets_it():
    run(
        LEAN,
        TRAINED,
        "import accelerate, sklearn, torch.distributed; assert sklearn.__version__",
        "assert torch.distributed.is_available()",
        "import torch._dynamo; print(torch._dynamo.config.suppress_errors)",
        "import peft, opacus",
    )
