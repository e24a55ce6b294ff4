"""The port that the sites reach: what passes through it to the SuperLink, and what is turned away with a reason.

A request is nobody's until its headers prove which site sent it (`node_keys`). Only then is its body read, in bounds
that its kind sets, and only then does it take a turn among the site's own. What a site sends in answer to a message
passes once it is whole (`whole_replies`). Flower verifies the signature again, and that the node is who it says.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flwr.proto.fleet_pb2 import PullMessagesResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.rejections import NOT_ENROLLED
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.activation import REFUSED, TRY_AGAIN, sign_on
from fedglm.server.gateway.activation_times import ActivationTimes
from fedglm.server.gateway.asgi import Answer, Application, BodyError, Receive, Scope, Send, ask, read_body, refuse
from fedglm.server.gateway.node_keys import EnrolledKeys, Sender
from fedglm.server.gateway.reply_limits import WORDS_BYTES, ReplyLimits
from fedglm.server.gateway.reply_parts import ReplyError
from fedglm.server.gateway.site_turns import Crowded, SiteTurns
from fedglm.server.gateway.visitors import VISITOR, Visitor
from fedglm.server.gateway.whole_replies import WholeReplies

_FLEET: Final = "/v1/fleet/"
_SIGN_ON: Final = f"{_FLEET}activate-node"
_PULL: Final = f"{_FLEET}pull-messages"
_ANNOUNCE: Final = f"{_FLEET}push-messages"
_PART: Final = f"{_FLEET}push-object"

_SMALL_BYTES: Final = 4096
BODY_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        _SIGN_ON: _SMALL_BYTES,
        _PULL: _SMALL_BYTES,
        _ANNOUNCE: WORDS_BYTES,
        **{
            _FLEET + name: _SMALL_BYTES
            for name in (
                "deactivate-node",
                "send-node-heartbeat",
                "get-run",
                "get-fab",
                "pull-object",
                "confirm-message-received",
            )
        },
    }
)
"""What a node may ask, with the longest body of each; of the parts of an answer `WholeReplies` says how long."""

_IDLE_S = 30.0
_BODY_S = 305.0
"""Within that a body must have come: from then on the signature is out of date."""

_ANSWER_S = 600.0
"""Within that an answer must have been taken."""

# What a SuperNode does about a status: when it signs on, it prints the reason that comes with 412, and ends. Later it
# ends at 401, without a word, and tries again at 503; others end its loop, or cost it the message that it sends.
_SAY_WHY, _END, _TRY_AGAIN = REFUSED, 401, TRY_AGAIN

_log = logging.getLogger("uvicorn.error")  # which Flower has set up by then


class SitesGateway:
    """An ASGI application around Flower's.

    Args:
        application: Flower's.
        keys: Who is enrolled.
        state: The project's folder of what its processes remember.
    """

    def __init__(self, application: Application, keys: EnrolledKeys, state: Path) -> None:
        self._application, self._keys = application, keys
        self._activation_times, self._turns = ActivationTimes(state), SiteTurns()
        self._replies = WholeReplies(ReplyLimits(state), state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # a web socket; returning without an answer closes it
        try:
            sender = self._keys.sender(scope["headers"])
            fault = self._fault(scope, sender)
        except (OSError, PrivacyError, ProjectError) as exc:
            _log.error("nobody is let in: %s", exc)
            sender = Sender(None, None, is_signed=False)
            fault = (_TRY_AGAIN, "the server cannot read its list of sites; call the people who run it")
        if fault is None and sender.site is not None:
            await self._serve(sender.site, scope, receive, send)
        elif fault is not None:
            await self._turn_away(scope, send, *fault)

    async def _serve(self, site: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the site's key has signed."""
        visitor: Visitor | None = scope.get("state", {}).get(VISITOR)
        if visitor is not None:
            visitor.prove(site)
        length = int(dict(reversed(scope["headers"]))[b"content-length"])
        try:
            async with self._turns.turn(site):
                body = await read_body(receive, length, idle_s=_IDLE_S, total_s=_BODY_S)
                async with asyncio.timeout(_ANSWER_S):
                    await self._answer(site, scope, body, send)
        except Crowded as exc:
            await self._turn_away(scope, send, _TRY_AGAIN, str(exc))
        except TimeoutError:
            _log.warning("%s has not taken its answer within %g s", site, _ANSWER_S)
            if visitor is not None:
                visitor.drop()
        except BodyError as exc:
            await self._turn_away(scope, send, 408, f"{site}: {exc}")
        except ReplyError as exc:
            await self._turn_away(scope, send, exc.status, f"an answer of {site} is not taken: {exc}")

    async def _answer(self, site: str, scope: Scope, body: bytes, send: Send) -> None:
        path = scope["path"]

        async def flower(where: str, content: bytes) -> Answer:
            return await ask(self._application, scope, content, path=where)

        if path == _SIGN_ON:
            if await sign_on(self._application, scope, body, send):
                self._note(site)
            return
        if path == _ANNOUNCE:
            answer: Answer | bytes = self._replies.announce(site, body)
        elif path == _PART:
            answer = await self._replies.take(site, body, flower)
        else:
            answer = await flower(path, body)
            if path == _PULL and answer.status == 200:
                self._hand(site, answer.body)
        if isinstance(answer, bytes):
            await _send(send, answer)
        elif answer.status >= 500:  # whatever it is: a node is to ask again, and not to end over it
            await self._turn_away(scope, send, _TRY_AGAIN, f"Flower answers {site} with {answer.status}; see above")
        else:
            await answer.pass_on(send)

    def _hand(self, site: str, body: bytes) -> None:
        try:
            self._replies.handed(site, PullMessagesResponse.FromString(body))
        except DecodeError as exc:
            raise ProjectError("Flower hands out messages in another form: install a tested version") from exc

    def _note(self, site: str) -> None:
        """Write down that a node signs on; without that it would only be asked again later."""
        try:
            self._activation_times.note(site)
        except OSError as exc:
            _log.error("%s", exc)

    async def _turn_away(self, scope: Scope, send: Send, status: int, reason: str) -> None:
        who = (scope.get("client") or ("somebody",))[0]
        _log.warning("turned away %s: %.20s %.80r: %s", who, scope["method"], scope["path"], reason)
        await refuse(send, status, reason)

    def _fault(self, scope: Scope, sender: Sender) -> tuple[int, str] | None:
        """Status and reason to turn a request away with; None for one that may pass."""
        path = scope["path"]
        if scope["method"] != "POST" or (path not in BODY_BYTES and path != _PART):
            return 403, "this port is for the sites' nodes; runs and registrations are for the server's own machine"
        signs_on = path == _SIGN_ON
        if sender.site is None:
            reason = f"this node's key {NOT_ENROLLED}; send SITE.pub to the people who run the server"
            return _SAY_WHY if signs_on else _END, reason
        if sender.late_s is None:
            return _SAY_WHY if signs_on else _END, f"{sender.site} does not say when it sent its request"
        if not sender.is_timely:
            way = "behind" if sender.late_s > 0 else "ahead of"
            off = f"{abs(sender.late_s):.0f} s {way} the server's"
            reason = f"the clock of {sender.site} is {off}: set both by a time server"
            return _SAY_WHY if signs_on else _TRY_AGAIN, reason
        if not sender.is_signed:
            return _END, f"the key of {sender.site} has not signed this request"
        headers = dict(reversed(scope["headers"]))
        length, limit = headers.get(b"content-length", b""), self._limit(sender.site, path)
        if b"transfer-encoding" in headers or not length.isdigit() or len(length) > 15:
            return 411, f"{sender.site} does not say how long its message is"
        if int(length) > limit:
            return 413, f"{sender.site} sends {int(length)} bytes, and here {limit} are read at most"
        return None

    def _limit(self, site: str, path: str) -> int:
        return self._replies.room(site) if path == _PART else BODY_BYTES[path]


async def _send(send: Send, body: bytes) -> None:
    kind = [(b"content-type", b"application/protobuf"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": kind})
    await send({"type": "http.response.body", "body": body})
