"""Enrolled sites that sign what they say and train nothing: an update follows from the site's name and the round."""

import zlib

import numpy as np
from fake_grid import FEDERATED, SIZE, Answer
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedglm.compression.codec import make_codec
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.protocol.messages import PLAN, RECORD, UPDATE, JoinReply, TrainReply
from fedglm.protocol.signatures import SIGNATURE, sign_join_reply, sign_train_reply

CODEC = "topk-fp16"


def signing_site(name: str, key: SigningKey, *, layout: str = FEDERATED.layout.sha256) -> Answer:
    """A site that joins and answers each request; it countersigns nothing."""
    codec = make_codec(CODEC, density=0.2)

    def act(message):
        asked = message.content.config_records[RECORD]
        if message.metadata.message_type == "query":
            plan = SignedPlan.from_bytes(asked[PLAN]).plan.sha256
            joining = JoinReply(name=name, run="", version=-1, layout=layout, examples=20)
            fields = joining.to_fields()
            return words(message, {**fields, SIGNATURE: sign_join_reply(key, fields, plan)})
        if message.metadata.message_type != "train":
            return Message(Error(code=int(ErrorCode.UNKNOWN), reason="it only trains"), reply_to=message)
        dice = np.random.default_rng(zlib.crc32(f"{name} {asked['round']}".encode()))
        blob = codec.encode(dice.normal(scale=0.01, size=SIZE).astype(np.float32))
        fields = TrainReply(nonce=asked["nonce"]).to_fields()
        signature = sign_train_reply(key, fields, asked["run"], asked["round"], blob, {})
        return words(message, {**fields, SIGNATURE: signature, UPDATE: blob})

    return act


def words(message, fields):
    return Message(RecordDict({RECORD: ConfigRecord(fields)}), reply_to=message)
