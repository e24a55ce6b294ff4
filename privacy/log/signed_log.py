"""The signed log of a site or a server: a tamper-evident record of what happened.

It is a `ChainedFile` whose entries `privacy.log.entries` defines, with a Merkle tree over them and the owner's newest
signed tree head beside them: each entry is on the disk together with a signature over all entries so far. Whoever does
not have the key can neither truncate nor change it; whoever has it cannot change what the other side has countersigned.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Final

from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.log.chained_file import ChainedFile, Head, utc_now
from fedglm.privacy.log.entries import make_entry, read_entry
from fedglm.privacy.log.merkle import Frontier, hash_leaf
from fedglm.privacy.log.tree_head import FIELDS, SignedTreeHead

LOG: Final = "log.sqlite"
"""Name of a log's file."""

Entry = dict[str, Any]
"""Fields of an entry, with `number`, `time` and `kind`."""


class SignedLog(ChainedFile):
    """A signed log in the file at `path`, which `create` made.

    Args:
        path: Path of the file.
        key: Key of the owner, for writing; None to read only.
        on_entry: Callback for each entry, in order, also of those that other processes write.

    Attributes:
        owner: Fields of the first entry: role, name, key and software.

    Raises:
        LogError: There is no such file, it is damaged, or its owner did not sign it.
    """

    noun = "log"
    table = "entries"
    extra_tables: ClassVar = {"checkpoint": f"CREATE TABLE checkpoint ({', '.join(FIELDS)})"}
    missing_reason = "a new one would forget what happened"
    error = LogError

    def __init__(
        self, path: Path, key: SigningKey | None = None, on_entry: Callable[[Entry], None] | None = None
    ) -> None:
        self._key, self._on_entry = key, on_entry
        self._tree, self._public = Frontier(), ""
        self.owner: Entry = {}
        super().__init__(path)
        self.read_tree_head()

    @classmethod
    def create(cls, path: Path, key: SigningKey, *, role: str, name: str) -> "SignedLog":
        """Create a log in a new file, readable by its owner only.

        Args:
            path: Path of the new file.
            key: Key of the owner.
            role: Role of the owner, `site` or `server`.
            name: Name of the owner.

        Raises:
            LogError: The file exists already, or cannot be written.
        """
        opened = {"role": role, "name": name, "key": key.public.hex, "software": _describe_software()}

        def begin(database: sqlite3.Connection, head: Head) -> None:
            cls._write_entries(database, head, Frontier(), [("opened", opened)], key)

        cls._create_file(path, begin)
        return cls(path, key)

    @property
    def key(self) -> PublicKey:
        """Public key with which the log is currently signed."""
        return PublicKey.from_hex(self._public)

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one entry; raises as `writing`."""
        with self.writing() as put:
            put(kind, fields)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
        """Write and sign the entries of a block, all or none; they are durable on the disk when the block ends.

        Other processes wait until then, and `on_entry` has been called for all entries that they wrote before.

        Yields:
            Function that adds an entry of a kind with its fields.

        Raises:
            PrivacyError: A field is not permitted in a log.
            LogError: The entries could not be written, the log is damaged, or this is not its owner's key.
        """
        if self._key is None:
            raise LogError(f"the log {self._path} is open to be read alone")
        entries: list[tuple[str, Mapping[str, Any]]] = []
        with self._writing() as database:
            yield lambda kind, fields: entries.append((kind, fields))
            if entries:
                if self._key.public != self.key and entries[0][0] != "key":
                    raise LogError(f"the log {self._path} is not written with the key of its owner")
                self._write_entries(database, self._head, self._tree, entries, self._key)

    def read_tree_head(self) -> SignedTreeHead:
        """Read and verify the owner's signed tree head over all entries so far.

        Raises:
            LogError: The tree head is over other entries, or not signed by the owner.
        """
        with self._reading() as database:
            rows = database.execute("SELECT * FROM checkpoint").fetchall()
            if len(rows) != 1:
                raise self._make_damage_error(": it has no checkpoint, or more than one")
            try:
                signed = SignedTreeHead.from_fields(self.origin, dict(zip(FIELDS, rows[0], strict=True)))
            except PrivacyError as exc:
                raise self._make_damage_error(f": {exc}") from exc
            if (signed.size, signed.root) != (self._tree.size, self._tree.root().hex()):
                raise self._make_damage_error(
                    f": it has {self._tree.size} entries, and its owner signed {signed.size} others"
                )
            if not signed.is_by(self.key):
                raise self._make_damage_error(": its checkpoint is not signed by its owner")
        return signed

    def entries(self) -> Iterator[bytes]:
        """Yield the texts of all entries, oldest first."""
        with self._reading() as database:
            for (text,) in database.execute("SELECT entry FROM entries ORDER BY number"):
                yield text.encode()

    @classmethod
    def _write_entries(
        cls,
        database: sqlite3.Connection,
        head: Head,
        tree: Frontier,
        entries: Sequence[tuple[str, Mapping[str, Any]]],
        key: SigningKey,
    ) -> None:
        """Write entries after `head`, whose tree is `tree`, and the tree head over all of them; in a transaction."""
        moment, origin = utc_now(), database.execute("SELECT hash FROM origin").fetchone()[0]
        texts = [make_entry(number, moment, *each) for number, each in enumerate(entries, head.rows + 1)]
        cls._append_entries(database, head, texts)
        new_tree = tree.copy()
        for text in texts:
            new_tree.append(hash_leaf(text))
        signed = SignedTreeHead.sign(origin, new_tree.size, new_tree.root().hex(), moment, key)
        database.execute("DELETE FROM checkpoint")
        database.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", tuple(signed.to_fields().values()))

    def _accept_entry(self, content: bytes, _: str) -> None:
        entry = read_entry(content, self._head.rows + 1)
        if entry["kind"] == "opened":
            self.owner, self._public = entry, entry["key"]
        elif entry["kind"] == "key":
            if entry["previous"] != self._public:
                raise PrivacyError("it replaces a key that was not the owner's")
            self._public = entry["key"]
        self._tree.append(hash_leaf(content))
        if self._on_entry is not None:
            self._on_entry(entry)


def _describe_software() -> str:
    try:
        return f"fedglm {version('fedglm')}"
    except PackageNotFoundError:
        return "fedglm"
