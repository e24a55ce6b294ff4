"""What a node's worker leaves out of its libraries changes its memory, and nothing else."""

import subprocess
import sys
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
ADAPTED = """
from fedglm.autoglm.models.lora import attach_lora
adapted = attach_lora(model, rank=2, alpha=4, classifier=False)
adapted(input_ids=words, labels=words).loss.backward()
print(sum(parameter.grad is not None for parameter in adapted.parameters()))
"""
LEAN = "from fedglm.client.supernode.lean_imports import import_lean; import_lean()\n"


def run(*lines):
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def lean():
    """What a worker's process prints: the weights that it trained, what it loaded of the rest, and adapted tensors."""
    heavy = ("accelerate", "pandas", "peft", "PIL", "sklearn", "sympy", "torchvision", "torch._dynamo.utils")
    code = f"import sys; print([name for name in {heavy} if name in sys.modules])"
    worker = "import fedglm.client.supernode.worker, fedglm.client.site.site_node"
    return run(LEAN, worker, TRAINED, code, ADAPTED)


@pytest.mark.slow
def test_a_model_trains_to_the_same_bits(lean):
    assert lean[:1] == run(TRAINED)


def test_nothing_of_what_is_left_out_is_loaded(lean):
    assert lean[1] == "[]"


def test_adapters_train_where_peft_comes_later(lean):
    assert int(lean[2]) > 0


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
