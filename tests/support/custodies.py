"""Sites that permit what a test asks for, and the plans of a server that they listen to."""

from plans import make_plan

from fedglm.client.exchange import Authorization
from fedglm.core.code_identity import code_sha256
from fedglm.privacy.custody.store import Custody, initialize, is_initialized
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.run_plan import SignedPlan

SERVER = SigningKey.generate()
FREELY = Authorization(None, None, 0, lambda: None, lambda _: True)
"""What a gate without a budget lets a node do."""

MECHANISM = Mechanism(
    sampling_rate=0.5, steps=3, clipping_norm=1.0, noise_multiplier=1.5, unit="record", records_per_unit=1
)
OPEN = {
    "without_differential_privacy": True,
    "steps_at_most": 100,
    "servers": (ANY,),
    "plans": (ANY,),
    "models": (ANY,),
    "codecs": (ANY,),
    "bytes_at_most": 10**9,
}
PRIVATE = OPEN | {
    "without_differential_privacy": False,
    "epsilon": 50.0,
    "delta": 1e-3,
    "declare_units": 20,
    "unit": "record",
    "records_per_unit_at_most": 1,
    "noise_multiplier_at_least": 1.0,
    "clipping_norm_at_most": 1.0,
}


def custody(folder, *, private=False, unit="record", **changes):
    """The custody in `folder`, made with a policy that permits nearly all, or all that has noise."""
    if not is_initialized(folder):
        initialize(folder, Policy(data_set=folder.parent.name or "site", **((PRIVATE if private else OPEN) | changes)))
    return Custody.open(folder, lambda: [[b"one"], [b"two"]], unit=unit)


def run_plan(layout, *, parameters=1000, run="run-1", mechanism=None, **changes):
    """A plan of topk-fp16 in three steps a round."""
    fields = {
        "run": run,
        "rounds": 100,
        "turns": 100,
        "local_steps": 3,
        "mechanism": mechanism,
        "noise_at_most": mechanism and mechanism.noise_multiplier,
        "metrics": None,
        "codec": "topk-fp16",
        "density": None,
        "parameters": parameters,
        "layout": layout,
        "model": "0" * 64,
        "recipe": "",
        "code": code_sha256(),
    }
    return make_plan(**(fields | changes))


def announced(plan):
    """The plan as it travels."""
    return SignedPlan.sign(plan, SERVER).to_bytes()
