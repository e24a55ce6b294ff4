"""The signed log of a site or a server: what happened, in entries that nobody can change unseen.

It is a `ChainedFile` whose entries are held to `log_entries`, with a Merkle tree over them and the owner's newest
checkpoint beside them: each entry is on the disk together with a signature over all entries so far. Who holds no key
can neither cut nor change it; who holds the key cannot change what the other side has countersigned.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Final

from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.log.chained_file import ChainedFile, Head, now
from fedglm.privacy.log.entries import entry, read_entry
from fedglm.privacy.log.merkle import Frontier, leaf_hash
from fedglm.privacy.log.tree_head import COLUMNS, SignedTreeHead

LOG: Final = "log.sqlite"
"""Name of a log's file."""

Entry = dict[str, Any]
"""Fields of an entry, with `number`, `time` and `kind`."""


class SignedLog(ChainedFile):
    """The log in the file at `path`, which `create` made.

    Args:
        path: Of the file.
        key: The owner's, to write with; None to read alone.
        remember: Is told of each entry, in order, also of those that other processes write.

    Attributes:
        owner: What the log was opened with: role, name, key and software.

    Raises:
        LogError: There is no such file, it is damaged, or its owner did not sign it.
    """

    what = "log"
    table = "entries"
    more: ClassVar = {"checkpoint": f"CREATE TABLE checkpoint ({', '.join(COLUMNS)})"}
    if_missing = "a new one would forget what happened"
    error = LogError

    def __init__(
        self, path: Path, key: SigningKey | None = None, remember: Callable[[Entry], None] | None = None
    ) -> None:
        self._key, self._remember = key, remember
        self._tree, self._public = Frontier(), ""
        self.owner: Entry = {}
        super().__init__(path)
        self.checkpoint()

    @classmethod
    def create(cls, path: Path, key: SigningKey, *, role: str, name: str) -> "SignedLog":
        """A log in a new file, readable by its owner alone.

        Args:
            path: Of the file.
            key: The owner's.
            role: `site` or `server`.
            name: The owner's.

        Raises:
            LogError: There is a file at `path` already, or it cannot be written.
        """
        opened = {"role": role, "name": name, "key": key.public.hex, "software": _software()}

        def begin(database: sqlite3.Connection, head: Head) -> None:
            cls._put(database, head, Frontier(), [("opened", opened)], key)

        cls._make(path, begin)
        return cls(path, key)

    @property
    def key(self) -> PublicKey:
        """The key that signs it now."""
        return PublicKey.from_hex(self._public)

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one entry; raises as `writing`."""
        with self.writing() as put:
            put(kind, fields)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
        """Write what the block puts, all or nothing, and sign; on the disk for good when the block is through.

        Other processes wait until then, and all that they wrote before has been remembered.

        Yields:
            What takes the kind and the fields of an entry.

        Raises:
            PrivacyError: A field may not stand in a log.
            LogError: It could not be written, or the log is damaged, or this is not its owner's key.
        """
        if self._key is None:
            raise LogError(f"the log {self._path} is open to be read alone")
        entries: list[tuple[str, Mapping[str, Any]]] = []
        with self._writing() as database:
            yield lambda kind, fields: entries.append((kind, fields))
            if entries:
                if self._key.public != self.key and entries[0][0] != "key":
                    raise LogError(f"the log {self._path} is not written with the key of its owner")
                self._put(database, self._head, self._tree, entries, self._key)

    def checkpoint(self) -> SignedTreeHead:
        """The owner's signature over all entries so far.

        Raises:
            LogError: It is over others, or not signed by the owner.
        """
        with self._reading() as database:
            found = database.execute("SELECT * FROM checkpoint").fetchall()
            if len(found) != 1:
                raise self._damaged(": it has no checkpoint, or more than one")
            try:
                signed = SignedTreeHead.from_fields(self.origin, dict(zip(COLUMNS, found[0], strict=True)))
            except PrivacyError as exc:
                raise self._damaged(f": {exc}") from exc
            if (signed.size, signed.root) != (self._tree.size, self._tree.root().hex()):
                raise self._damaged(f": it has {self._tree.size} entries, and its owner signed {signed.size} others")
            if not signed.is_by(self.key):
                raise self._damaged(": its checkpoint is not signed by its owner")
        return signed

    def entries(self) -> Iterator[bytes]:
        """Texts of all entries, the oldest first."""
        with self._reading() as database:
            for (text,) in database.execute("SELECT entry FROM entries ORDER BY number"):
                yield text.encode()

    @classmethod
    def _put(
        cls,
        database: sqlite3.Connection,
        head: Head,
        tree: Frontier,
        entries: Sequence[tuple[str, Mapping[str, Any]]],
        key: SigningKey,
    ) -> None:
        """Write entries after `head`, whose tree is `tree`, and the checkpoint over all of them; in a transaction."""
        moment, origin = now(), database.execute("SELECT hash FROM origin").fetchone()[0]
        texts = [entry(number, moment, *one) for number, one in enumerate(entries, head.rows + 1)]
        cls._add(database, head, texts)
        whole = tree.copy()
        for text in texts:
            whole.append(leaf_hash(text))
        signed = SignedTreeHead.sign(origin, whole.size, whole.root().hex(), moment, key)
        database.execute("DELETE FROM checkpoint")
        database.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", tuple(signed.to_fields().values()))

    def _take(self, content: bytes, _: str) -> None:
        found = read_entry(content, self._head.rows + 1)
        if found["kind"] == "opened":
            self.owner, self._public = found, found["key"]
        elif found["kind"] == "key":
            if found["previous"] != self._public:
                raise PrivacyError("it replaces a key that was not the owner's")
            self._public = found["key"]
        self._tree.append(leaf_hash(content))
        if self._remember is not None:
            self._remember(found)


def _software() -> str:
    try:
        return f"fedglm {version('fedglm')}"
    except PackageNotFoundError:
        return "fedglm"
