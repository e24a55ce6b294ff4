"""Anchors of the sites' logs: the last known state of each, kept from run to run.

    state/anchors/SITE.json    the site's signing key and the anchor of its log

A site that restores an old ledger and log between two runs gets their last known state from the server, and its own
node refuses to work on the older copy. A site with another key starts without an anchor: its first entry in the
server's log then shows none.
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
        state: Folder of the project's state.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER

    def known(self, site: str, key: PublicKey) -> str | None:
        """Return the newest anchor of a site's log.

        Args:
            site: Name of the site.
            key: Public key of the site; an anchor under another key does not count.

        Returns:
            The anchor as text; None where none is known.

        Raises:
            PrivacyError: The file is damaged: an anchor must not be lost silently.
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
        """Store an anchor, unless one at least as new is known.

        Args:
            site: Name of the site.
            key: Public key of the site.
            anchor: State of its log, as text.

        Raises:
            StorageError: The file cannot be written.
            PrivacyError: The file is damaged.
        """
        known = self.known(site, key)
        if known is not None and Head.from_text(known).rows >= Head.from_text(anchor).rows:
            return
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._folder / f"{site}.json", json.dumps({"key": key.hex, "anchor": anchor}), mode=0o600)
