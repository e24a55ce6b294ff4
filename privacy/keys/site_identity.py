"""What a site hands over to a server, once, to be let in: the public halves of its two keys, in the file `SITE.pub`.

    # What site berlin hands over to the server. Nothing in it is secret.
    name = "berlin"
    made = "2027-01-04"
    flower = "ecdsa-sha2-nistp384 AAAA..."
    signing = "5f0c..."
    signature = "91ab..."

The signature is the signing key's, over the four entries above it: a line that was lost or changed on the way, or one
half swapped for another site's, is seen. It does not say whose the file is; for that, people at both ends compare the
fingerprints by telephone.
"""

import base64
import datetime
import hashlib
import re
import tomllib
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey

MAX_BYTES = 4096
"""Longest `SITE.pub` that is read; a usual one has about 620 bytes."""

_CONTEXT = "fedglm/site/1"
# No leading dot or dash (a hidden file, an option), and no .zip: a kit lies beside its archive.
_NAME = re.compile(r"(?!.*\.zip$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.IGNORECASE)
_FLOWER_KIND = "ecdsa-sha2-nistp384"
_FLOWER_HEAD = b"".join(len(part).to_bytes(4, "big") + part for part in (_FLOWER_KIND.encode(), b"nistp384")) + (
    97
).to_bytes(4, "big")  # of the point, which follows: 0x04 and two coordinates of 48 bytes
_KEYS = ("name", "made", "flower", "signing", "signature")


def checked_site_name(name: str) -> str:
    """`name`, if it can name a site: it becomes a file's name, an argument, a column in tables.

    Raises:
        PrivacyError: It has a character that is not permitted, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise PrivacyError(
            f"{name[:80]!r} cannot name a site: take 1 to 64 of A-Z a-z 0-9 . _ -, first a letter or digit, with no "
            ".zip at the end"
        )
    return name


@dataclass(frozen=True)
class SiteIdentity:
    """The public halves of a site's keys.

    Attributes:
        name: What the site is called.
        flower: What its SuperNode signs on with: one line as in OpenSSH's files, `ecdsa-sha2-nistp384 AAAA...`.
        signing: What its updates are signed with.
        made: Day on which the keys were made, as 2027-01-04.

    Raises:
        PrivacyError: One of them is no such thing.
    """

    name: str
    flower: str
    signing: PublicKey
    made: str

    def __post_init__(self) -> None:
        checked_site_name(self.name)
        _check_flower_key(self.flower)
        _check_day(self.made)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Half of each key's SHA-256, to compare over the telephone; the keys are `flower` and `signing`."""
        raw = self.flower.split(" ")[1].encode()
        digits = hashlib.sha256(raw).hexdigest()[:32]
        flower = "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))
        return {"flower": flower, "signing": self.signing.fingerprint()}

    def to_text(self, key: SigningKey) -> str:
        """The content of `SITE.pub`.

        Args:
            key: The private half of `signing`.

        Raises:
            PrivacyError: It is not.
        """
        if key.public != self.signing:
            raise PrivacyError(f"site {self.name}: signed with another key than the one that it hands over")
        return self._text(key.sign(_CONTEXT, self._message()).hex())

    @classmethod
    def from_text(cls, text: str, *, origin: str = "SITE.pub") -> Self:
        """Read what a stranger sent; other line ends and blanks around the whole do not matter.

        Args:
            text: Content of the file.
            origin: Name of the file in errors.

        Raises:
            PrivacyError: The text is too long, in another form than `to_text` writes, or not signed by its own key.
        """
        if len(text.encode(errors="replace")) > MAX_BYTES:
            raise PrivacyError(f"{origin} is longer than {MAX_BYTES} bytes, so no site handed it over")
        entries = _entries(text, origin)
        try:
            identity = cls(entries["name"], entries["flower"], PublicKey.from_hex(entries["signing"]), entries["made"])
        except PrivacyError as exc:
            raise PrivacyError(f"{origin}: {exc}") from exc
        signature = entries["signature"]
        if not re.fullmatch(r"[0-9a-f]{128}", signature) or not identity.signing.verify(
            _CONTEXT, identity._message(), bytes.fromhex(signature)
        ):
            raise PrivacyError(
                f"{origin} does not carry its own key's signature: it was changed or cut on the way; have it sent again"
            )
        if "\n".join(text.split("\r\n")).strip() != identity._text(signature).strip():
            raise PrivacyError(f"{origin} holds more than a site hands over: have it sent again, as it was made")
        return identity

    def _message(self) -> bytes:
        return canonical_json(
            {"name": self.name, "flower": self.flower, "signing": self.signing.hex, "made": self.made}
        )

    def _text(self, signature: str) -> str:
        values = (self.name, self.made, self.flower, self.signing.hex, signature)
        lines = [f'{key} = "{value}"' for key, value in zip(_KEYS, values, strict=True)]
        return "\n".join([f"# What site {self.name} hands over to the server. Nothing in it is secret.", *lines, ""])


def _entries(text: str, origin: str) -> dict[str, str]:
    try:
        entries = tomllib.loads(text.strip() + "\n")
    except (ValueError, RecursionError) as exc:
        raise PrivacyError(f"{origin} is not TOML, so no site handed it over: {exc}") from exc
    for key in _KEYS:
        if not isinstance(entries.get(key), str):
            raise PrivacyError(f"{origin} holds no text {key!r}, so no site handed it over")
    return entries


def _check_flower_key(line: str) -> None:
    """Hold a line to the one form that a P-384 key has in OpenSSH's files (RFC 5656, 3.1), with nothing after it."""
    coded = line.partition(" ")[2]
    try:
        raw = base64.b64decode(coded, validate=True)
        EllipticCurvePublicKey.from_encoded_point(SECP384R1(), raw.removeprefix(_FLOWER_HEAD))
    except ValueError:
        raw = b""
    head, point = raw[: len(_FLOWER_HEAD)], raw[len(_FLOWER_HEAD) :]
    if (
        head != _FLOWER_HEAD
        or not point.startswith(b"\x04")
        or f"{_FLOWER_KIND} {base64.b64encode(raw).decode()}" != line
    ):
        raise PrivacyError(
            f"a node's public key is a line {_FLOWER_KIND} AAAA... and nothing after it, not {line[:60]!r}"
        )


def _check_day(text: str) -> None:
    try:
        same = datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        same = False
    if not same:
        raise PrivacyError(f"the day on which keys were made is written as 2027-01-04, not {text[:40]!r}")
