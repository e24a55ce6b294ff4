"""The port that the sites reach: what passes through it to the SuperLink, and what is turned away with a reason.

Flower's own check comes after it, and is the one that counts: it verifies the node's signature. The door is there for
what Flower leaves open (runs and registrations by anybody), for what it would read before it knows who is there, and
for reasons that a site's engineer can do something with.
"""

import datetime
import json
import logging
from base64 import b64encode
from collections.abc import Sequence

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.error import ApiErrorCode

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.site_identity import SiteIdentity
from fedglm.server.enrolment import enrolled_sites
from fedglm.server.errors import ProjectError
from fedglm.server.project import Project
from fedglm.server.sign_on import MOST_BODY_BYTES as MOST_SIGN_ON_BYTES
from fedglm.server.sign_on import REFUSED, TRY_AGAIN, Application, Receive, Scope, Send, sign_on
from fedglm.server.sign_ons import SignOns

MOST_BODY_BYTES = 64 * 2**20
"""Longest body that the sites' port takes; Flower sends an update in pieces of some MiB."""

_FLEET = "/v1/fleet/"
_SIGN_ON = "/v1/fleet/activate-node"
_CODE = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED

# What a SuperNode does about a status: when it signs on, it prints the reason that comes with 412, and ends. Later it
# ends at 401, without a word, and tries again at 503; at others it stops working and does not end.
_SAY_WHY, _END, _TRY_AGAIN = REFUSED, 401, TRY_AGAIN

_log = logging.getLogger("uvicorn.error")  # which Flower has set up by then


class EnrolledKeys:
    """The keys of the sites that may take part, as they stand in the headers of their requests.

    It looks at the project's folders again whenever one of them changed, so that who was revoked is out at once.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._seen: tuple[int, ...] = ()
        self._names: dict[bytes, str] = {}

    def name(self, header: bytes) -> str | None:
        """Name of the site with this key; None for a stranger's.

        Raises:
            ProjectError, PrivacyError: A file is damaged.
            OSError: A folder cannot be read.
        """
        folders = (self._project.enrolled_folder, self._project.revoked_folder)
        seen = tuple(folder.stat().st_mtime_ns for folder in folders)
        if seen != self._seen:
            sites = enrolled_sites(self._project).values()
            self._names = {key_header(identity): identity.name for identity in sites}
            self._seen = seen
        return self._names.get(header)


class SitesDoor:
    """An ASGI application around Flower's, which tells by its port where a request came in.

    What a request says of itself does not matter, nor from which address it seems to come: behind a container's port
    forwarding, strangers come from 127.0.0.1 too.
    """

    def __init__(
        self, application: Application, control_port: int, keys: EnrolledKeys, sign_ons: SignOns | None = None
    ) -> None:
        self._application = application
        self._control_port = control_port
        self._keys = keys
        self._sign_ons = sign_ons

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan" or (scope.get("server") or ("", None))[1] == self._control_port:
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a web socket; returning without an answer closes it
        fault = self._fault(scope["path"], scope["headers"])
        if fault is None:
            if scope["path"] == _SIGN_ON:
                if await sign_on(self._application, scope, receive, send):
                    self._note(scope["headers"])
            else:
                await self._application(scope, receive, send)
            return
        status, reason = fault
        who = (scope.get("client") or ("somebody",))[0]
        _log.warning("turned away %s: %s %.80r: %s", who, scope["method"], scope["path"], reason)
        kind = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": kind})
        body = json.dumps({"code": int(_CODE), "detail": f"The federation's server: {reason}"})
        await send({"type": "http.response.body", "body": body.encode()})

    def _note(self, said: Sequence[tuple[bytes, bytes]]) -> None:
        """Write down that a node signs on; without that it would only be asked again later."""
        try:
            name = self._site(_headers(said))
            if name is not None and self._sign_ons is not None:
                self._sign_ons.note(name)
        except (OSError, PrivacyError, ProjectError) as exc:
            _log.error("%s", exc)

    def _site(self, headers: dict[bytes, bytes]) -> str | None:
        """The enrolled site that a request says it is from."""
        return self._keys.name(headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), b""))

    def _fault(self, path: str, said: Sequence[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Status and reason to turn a request away with; None for one that may pass."""
        headers = _headers(said)
        if not path.startswith(_FLEET):
            return 403, "this port is for the sites' nodes; runs and registrations are for the server's own machine"
        try:
            name = self._site(headers)
        except (OSError, PrivacyError, ProjectError) as exc:
            _log.error("nobody is let in: %s", exc)
            return _TRY_AGAIN, "the server cannot read its list of sites; call the people who run it"
        signs_on = path == _SIGN_ON
        if name is None:
            reason = "this node's key is not enrolled, or was revoked; send SITE.pub to the people who run the server"
            return _SAY_WHY if signs_on else _END, reason
        late = _seconds_late(headers.get(TIMESTAMP_HEADER.encode(), b""))
        if late is None:
            return _SAY_WHY if signs_on else _END, f"{name} does not say when it sent its request"
        if not -SYSTEM_TIME_TOLERANCE < late < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            way = "behind" if late > 0 else "ahead of"
            reason = f"the clock of {name} is {abs(late):.0f} s {way} the server's: set both by a time server"
            return _SAY_WHY if signs_on else _TRY_AGAIN, reason
        length = headers.get(b"content-length", b"")
        most = MOST_SIGN_ON_BYTES if signs_on else MOST_BODY_BYTES
        if not length.isdigit() or len(length) > 15 or int(length) > most:
            return 413, f"{name} must say how long its message is, {most} bytes at most"
        return None


def _headers(said: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return dict(reversed(said))  # of two with one name the first one counts, as it does for Flower


def key_header(identity: SiteIdentity) -> bytes:
    """The site's public key as Flower's nodes send it along: the PEM form in base64."""
    key = load_ssh_public_key(identity.flower.encode())
    return b64encode(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _seconds_late(timestamp: bytes) -> float | None:
    try:
        sent = datetime.datetime.fromisoformat(timestamp.decode("ascii"))
        return (datetime.datetime.now(datetime.UTC) - sent).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: no time zone
        return None
