"""Where each enrolled site's log stood when the server saw it last, kept from run to run.

    state/anchors/SITE.json    the site's signing key and the anchor of its log

A site that puts back an old ledger and log between two runs is told where they stood, and its own node refuses to work
on the older copy. A site with another key begins anew: its first entry in the server's log then shows no anchor.
"""

import json
from pathlib import Path
from typing import Final

from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.chained_file import Head

FOLDER: Final = "anchors"


class Anchors:
    """The anchors of a project's sites.

    Args:
        state: The project's folder of what its processes remember.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def known(self, site: str, key: PublicKey) -> str | None:
        """The newest anchor of the site's log under that key; None where none was seen.

        Raises:
            PrivacyError: The file is damaged: what it said must not be forgotten in silence.
        """
        path = self._folder / f"{site}.json"
        try:
            record = json.loads(path.read_text())
            if record["key"] != key.hex:
                return None
            return Head.from_text(record["anchor"]).to_text()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, PrivacyError) as exc:
            raise PrivacyError(
                f"{path} is damaged ({exc}): put it back from a copy, or remove it once the site {site} has shown its "
                "records to an auditor"
            ) from exc

    def keep(self, site: str, key: PublicKey, anchor: str) -> None:
        """Write an anchor down, unless a newer one is known.

        Raises:
            StorageError: It cannot be written.
        """
        known = self.known(site, key)
        if known is not None and Head.from_text(known).rows >= Head.from_text(anchor).rows:
            return
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._folder / f"{site}.json", json.dumps({"key": key.hex, "anchor": anchor}), mode=0o600)
