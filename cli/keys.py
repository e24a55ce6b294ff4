"""Public keys on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedglm.privacy.keys.signing import PublicKey


def parse_key(text: str) -> "PublicKey":
    """Read a public key from its 64 digits, or from the file SITE.pub.

    Raises:
        BadParameter: It is neither.
    """
    from fedglm.core.untrusted_files import read_regular
    from fedglm.privacy.keys.signing import PublicKey
    from fedglm.privacy.keys.site_identity import MAX_BYTES, SiteIdentity

    path = Path(text)
    try:
        if path.suffix != ".pub" and not path.is_file():
            return PublicKey.from_hex(text)
        content = read_regular(path, MAX_BYTES).decode()
    except UnicodeDecodeError:
        raise typer.BadParameter(f"--key {text}: it is no text, so no site handed it over: name its SITE.pub") from None
    except OSError as exc:
        message = (
            f"--key {text[:100]}: it cannot be read ({exc.strerror}): name a SITE.pub, or give the key's 64 digits"
        )
        raise typer.BadParameter(message) from exc
    return SiteIdentity.from_text(content, origin=text).signing
