"""A policy that permits exactly one model: the run's first weights are held to it though version 0 is never sent."""

import pytest
from custodies import announced, run_plan
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from site_folders import make_project, make_site, run_of

from fedglm.client.supernode.worker import make_site_app
from fedglm.protocol.messages import PLAN, RECORD

pytestmark = pytest.mark.usefixtures("unsynced")
TRIAL = """
name = "trial"
[data]
source = "breast-cancer"
[training]
local_steps = 2
batch_size = 8
precision = "fp32"
device = "cpu"
"""
PERMITTED = "ab" * 32


def test_a_plan_cannot_name_the_permitted_weights_and_describe_another_model(tmp_path):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    site = make_site(
        tmp_path, make_project(tmp_path), policy={"models": (PERMITTED,)}, data={"source": "breast-cancer"}
    )
    _, _, beside = run_of(TRIAL)
    plan = announced(run_plan(**{**beside, "model": PERMITTED}))
    message = Message(RecordDict({RECORD: ConfigRecord({PLAN: plan})}), dst_node_id=1, message_type="query")
    message.metadata.__dict__["_message_id"] = "m"
    reply = make_site_app(site)(message, Context(1, 1, {}, RecordDict(), {}))
    assert reply.has_error(), "the site takes part with a model that its policy does not list"
