"""The identity that a site gives to a server once, to be enrolled: the public halves of its two keys, in `SITE.pub`.

    # What site berlin hands over to the server. Nothing in it is secret.
    name = "berlin"
    made = "2027-01-04"
    flower = "ecdsa-sha2-nistp384 AAAA..."
    signing = "5f0c..."
    signature = "91ab..."

The signature is the signing key's, over the four entries above it: it detects a line that was lost or changed on the
way, or one half replaced by another site's. It does not prove who made the file; for that, people at both ends compare
the fingerprints by telephone.
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
"""Maximum size of a `SITE.pub`; a typical one has about 620 bytes."""

_CONTEXT = "fedglm/site/1"
# No leading dot or dash (a hidden file, an option), and no .zip: a startup kit is beside its archive.
_NAME = re.compile(r"(?!.*\.zip$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.IGNORECASE)
_FLOWER_KIND = "ecdsa-sha2-nistp384"
_FLOWER_HEAD = b"".join(len(part).to_bytes(4, "big") + part for part in (_FLOWER_KIND.encode(), b"nistp384")) + (
    97
).to_bytes(4, "big")  # length of the point, which follows: 0x04 and two coordinates of 48 bytes
_KEYS = ("name", "made", "flower", "signing", "signature")


def check_site_name(name: str) -> str:
    """Check the name of a site, which is used as a file name, an argument and a column of tables.

    Returns:
        The name.

    Raises:
        PrivacyError: The name has a character that is not permitted, or is too long.
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
        name: Name of the site.
        flower: Public key of its SuperNode, for Flower's authentication: one line in OpenSSH's format,
            `ecdsa-sha2-nistp384 AAAA...`.
        signing: Public key of the signatures of its updates.
        made: Day on which the keys were made, as 2027-01-04.

    Raises:
        PrivacyError: An attribute is malformed.
    """

    name: str
    flower: str
    signing: PublicKey
    made: str

    def __post_init__(self) -> None:
        check_site_name(self.name)
        _check_flower_key(self.flower)
        _check_day(self.made)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints to compare over the telephone, under `flower` and `signing`.

        They are half of a SHA-256: of the base64 text of the flower key, and of the raw signing key.
        """
        digits = hashlib.sha256(self.flower.split(" ")[1].encode()).hexdigest()[:32]
        flower = "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))
        return {"flower": flower, "signing": self.signing.fingerprint()}

    def to_text(self, key: SigningKey) -> str:
        """Make the content of `SITE.pub`.

        Args:
            key: The private half of `signing`.

        Raises:
            PrivacyError: `key` is another key.
        """
        if key.public != self.signing:
            raise PrivacyError(f"site {self.name}: signed with another key than the one that it hands over")
        return self._text(key.sign(_CONTEXT, self._message()).hex())

    @classmethod
    def from_text(cls, text: str, *, origin: str = "SITE.pub") -> Self:
        """Parse an untrusted `SITE.pub`; line ends, and blanks before and after the text, may differ.

        Args:
            text: Content of the file.
            origin: Name of the file in errors.

        Raises:
            PrivacyError: The text is too long, differs from the format of `to_text`, or is not signed by its own key.
        """
        if len(text.encode(errors="replace")) > MAX_BYTES:
            raise PrivacyError(f"{origin} is longer than {MAX_BYTES} bytes, so no site handed it over")
        entries = _parse_entries(text, origin)
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


def _parse_entries(text: str, origin: str) -> dict[str, str]:
    try:
        entries = tomllib.loads(text.strip() + "\n")
    except (ValueError, RecursionError) as exc:
        raise PrivacyError(f"{origin} is not TOML, so no site handed it over: {exc}") from exc
    for key in _KEYS:
        if not isinstance(entries.get(key), str):
            raise PrivacyError(f"{origin} holds no text {key!r}, so no site handed it over")
    return entries


def _check_flower_key(line: str) -> None:
    """Check that a line is a P-384 key in OpenSSH's format (RFC 5656, 3.1), in its only form, without a comment."""
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
        is_day = datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        is_day = False
    if not is_day:
        raise PrivacyError(f"the day on which keys were made is written as 2027-01-04, not {text[:40]!r}")
