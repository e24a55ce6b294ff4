"""A run with its logs, as an auditor gets it, and ways to tamper with it."""

import hashlib
import json
import random
import shutil
import sqlite3
from pathlib import Path

from custodies import MECHANISM, SERVER
from fake_grid import Answer, answering, federate
from tiny_federation import tiny_node

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.chained_file import compute_chain_hash
from fedglm.privacy.log.merkle import compute_root, hash_leaf
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.run_folder.rows import to_lines
from fedglm.server.coordinator import Coordinator

SITES = "abc"
ROUNDS = 3


def small_nodes(folder: Path, *, private: bool = True, **policies: dict[str, object]) -> dict[int, Answer]:
    """Make nodes a, b and c with few records; `policies` changes what one of them, or `every` one, permits."""
    return {
        10 - i: answering(
            tiny_node(folder, name, data_seed=i, rows=20),
            private=private, **{**policies.get("every", {}), **policies.get(name, {})},
        )
        for i, name in enumerate(SITES)
    }  # fmt: skip


def kept_run(folder: Path, nodes: dict[int, Answer], **changes: object) -> Coordinator:
    """Run with noise, or as `changes` say, and write all that stays on the server's disk for an auditor."""
    defaults = {"mechanism": MECHANISM, "log": folder / "audit" / "log.sqlite"}
    coordinator, _, _ = federate(folder, nodes, **{**defaults, **changes})
    (folder / "rounds.jsonl").write_text(to_lines(coordinator.rows))
    (folder / "summary.json").write_text(json.dumps({"model_sha256": coordinator.model_sha256}))
    return coordinator


def make_run(
    folder: Path, *, mechanism: Mechanism | None = MECHANISM, metrics: Mechanism | None = None, **policy: object
) -> Path:
    """Make a run of three sites, countersigned at its end; beside it, in `old`, the nodes as they were a round before.

    Args:
        folder: Folder of the run.
        mechanism: Mechanism of updates; None for a run without noise.
        metrics: Mechanism of measures; None for no measures.
        policy: Changes of the sites' policies.
    """
    every = {"share_metrics": metrics is not None, **policy}
    nodes = small_nodes(folder / "nodes", private=mechanism is not None, every=every)

    def keep(*event):
        if event == ("done", ROUNDS - 1):
            shutil.copytree(folder / "nodes", folder.with_name("old") / "nodes")

    noise = {"mechanism": mechanism, "metrics": metrics, "node_metrics": metrics is not None}
    kept_run(folder, nodes, hook=keep, rounds=ROUNDS, **noise)
    return folder


class Chain:
    """The entries of a log or the rows of a ledger, to be changed and written back by an adversary."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = "charges" if path.name == "ledger.sqlite" else "entries"
        with sqlite3.connect(path) as database:
            (self.origin,) = database.execute("SELECT hash FROM origin").fetchone()
            self.texts = [
                text
                for (text,) in database.execute(f"SELECT entry FROM {self.table} ORDER BY number")  # noqa: S608
            ]
        database.close()

    def numbered(self) -> None:
        """Give each entry the number of its place."""
        self.texts = [
            canonical_json({**json.loads(text), "number": number}).decode() for number, text in enumerate(self.texts, 1)
        ]

    def write(self, *, chain: bool, key: SigningKey | None = None) -> None:
        """Write the entries back.

        Args:
            chain: Whether to compute hashes that follow; else each entry keeps the hash that stood in its place.
            key: Key that signs them anew; None leaves the old signature.
        """
        with sqlite3.connect(self.path) as database:
            old = [digest for (digest,) in database.execute(f"SELECT hash FROM {self.table} ORDER BY number")]  # noqa: S608
            previous, rows = self.origin, []
            for number, text in enumerate(self.texts, 1):
                previous = compute_chain_hash(previous, text.encode())
                kept = old[number - 1] if number <= len(old) else hashlib.sha256(text.encode()).hexdigest()
                rows.append((number, text, previous if chain else kept))
            database.execute(f"DELETE FROM {self.table}")  # noqa: S608
            database.executemany(f"INSERT INTO {self.table} VALUES (?, ?, ?)", rows)  # noqa: S608
            if key is not None:
                root = compute_root(hash_leaf(text.encode()) for text in self.texts).hex()
                signed = SignedTreeHead.sign(self.origin, len(self.texts), root, "2027-01-04T10:00:00+00:00", key)
                database.execute("DELETE FROM checkpoint")
                database.execute("INSERT INTO checkpoint VALUES (?, ?, ?, ?)", tuple(signed.to_fields().values()))
        database.close()


def other_value(value: object, dice: random.Random) -> object:
    """Return another plausible value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + dice.choice((1, 7))
    if isinstance(value, float):
        return value * dice.choice((0.5, 1.25)) + 0.001
    if isinstance(value, str) and value:
        if set(value) <= set("0123456789abcdef") and len(value) >= 16:
            at = dice.randrange(len(value))
            return value[:at] + dice.choice("0123456789abcdef".replace(value[at], "")) + value[at + 1 :]
        return value[:-1] + ("x" if value[-1] != "x" else "y")
    if isinstance(value, list):
        return value[:-1] if value else ["x"]
    if isinstance(value, dict):
        name = dice.choice(sorted(value))
        return {**value, name: other_value(value[name], dice)}
    return 1 if value is None else None


def edited(text: str, dice: random.Random) -> str:
    """Return an entry with one field changed."""
    fields = json.loads(text)
    name = dice.choice(sorted(fields.keys() - {"number"}))
    return canonical_json({**fields, name: other_value(fields[name], dice)}).decode()


class Mutations:
    """Ways to change a run's records, each drawn by `dice`.

    Args:
        run: Run made by `make_run`; it stays unchanged.
        work: Folder of the changed copy.
    """

    def __init__(self, run: Path, work: Path) -> None:
        self._run, self._work = run, work
        self._keys = {name: SigningKey.load(run / "nodes" / name / "custody" / "site.key") for name in SITES}
        self._old = run.with_name("old")

    def apply(self, dice: random.Random) -> str:
        """Change a fresh copy; returns what was done."""
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(self._run, self._work)
        kind = dice.choice(
            (self.plain, self.plain, self.unsigned, self.other_key, self.own_key, self.own_key, self.replay, self.fork,
             self.ledger, self.server, self.files, self.signature)
        )  # fmt: skip
        return f"{kind.__name__}: {kind(dice)}"

    def _log(self, dice: random.Random) -> tuple[str, Chain]:
        owner = dice.choice((*SITES, "server"))
        return owner, Chain(self._path(owner))

    def _path(self, owner: str, name: str = "log.sqlite") -> Path:
        folder = self._work / "audit" if owner == "server" else self._work / "nodes" / owner / "custody"
        return folder / name

    def _change(self, chain: Chain, dice: random.Random, before: int, *, append: bool = True) -> str:
        """Change one of the first entries, up to `before`, or append one if `append` permits, as an owner may."""
        texts, at = chain.texts, dice.randrange(before)
        texts_before = list(texts)
        how = dice.choice(("edit", "drop", "swap", "copy", "cut", "empty", *(["append"] if append else [])))
        if how == "edit":
            texts[at] = edited(texts[at], dice)
        elif how == "drop":
            del texts[at]
        elif how == "swap":
            other = at - 1 if at else 1
            texts[at], texts[other] = texts[other], texts[at]
        elif how == "copy":
            texts.insert(dice.randrange(before), texts[at])
        elif how == "append":
            texts.append(texts[at])
        elif how == "cut":
            del texts[at:]
        else:
            texts[at] = ""
        if how in ("drop", "swap", "copy", "append") and dice.random() < 0.7:
            chain.numbered()
        if (
            not append and texts_before == chain.texts[: len(texts_before)]
        ):  # repeating the last entry is an append, too
            chain.texts = [*texts_before[:at], edited(texts_before[at], dice), *texts_before[at + 1 :]]
            how = "edit"
        return f"{how} at {at + 1}"

    def plain(self, dice: random.Random) -> str:
        """As somebody who has the file and knows nothing."""
        owner, chain = self._log(dice)
        change = self._change(chain, dice, len(chain.texts))
        chain.write(chain=False)
        return f"{owner}, {change}"

    def unsigned(self, dice: random.Random) -> str:
        """As somebody who recomputes the chain, and has no key."""
        owner, chain = self._log(dice)
        change = self._change(chain, dice, len(chain.texts))
        chain.write(chain=True)
        return f"{owner}, {change}"

    def other_key(self, dice: random.Random) -> str:
        """As somebody who signs with a key of their own, and claims that it is the owner's."""
        owner, chain = self._log(dice)
        key, old = SigningKey.generate(), SERVER if owner == "server" else self._keys[owner]
        change = self._change(chain, dice, len(chain.texts)) if dice.random() < 0.5 else "nothing else"
        chain.texts = [text.replace(old.public.hex, key.public.hex) for text in chain.texts]
        chain.write(chain=True, key=key)
        return f"{owner}, {change}"

    def own_key(self, dice: random.Random) -> str:
        """As the site itself, which changes what the server has seen."""
        owner = dice.choice(SITES)
        chain = Chain(self._path(owner))
        change = self._change(chain, dice, len(chain.texts), append=False)
        chain.write(chain=True, key=self._keys[owner])
        return f"{owner}, {change}"

    def replay(self, dice: random.Random) -> str:
        """Restore a site's own folder as it was before, all of it signed."""
        owner = dice.choice(SITES)
        shutil.rmtree(self._path(owner).parent)
        shutil.copytree(self._old / "nodes" / owner / "custody", self._path(owner).parent)
        return owner

    def fork(self, dice: random.Random) -> str:
        """Restore a site's own folder as it was before, and append to it."""
        owner = self.replay(dice)
        chain = Chain(self._path(owner))
        last = json.loads(chain.texts[-1])
        for number in range(dice.randrange(1, 12)):
            refused = {"kind": "refused", "run": "run", "round": number, "rule": "codecs", "time": last["time"]}
            chain.texts.append(canonical_json({**refused, "number": len(chain.texts) + 1}).decode())
        chain.write(chain=True, key=self._keys[owner])
        return owner

    def ledger(self, dice: random.Random) -> str:
        """Change the ledger alone, its chain recomputed or not."""
        owner = dice.choice(SITES)
        chain = Chain(self._path(owner, "ledger.sqlite"))
        change = self._change(chain, dice, len(chain.texts))
        chain.write(chain=dice.random() < 0.7)
        return f"{owner}, {change}"

    def server(self, dice: random.Random) -> str:
        """As the server itself, which changes what the sites have seen."""
        chain = Chain(self._path("server"))
        seen = max(json.loads(text)["size"] for text in chain.texts if '"kind":"countersigned"' in text)
        change = self._change(chain, dice, seen, append=False)
        chain.write(chain=True, key=SERVER)
        return change

    def files(self, dice: random.Random) -> str:
        """Change the run's files beside the logs, or a policy."""
        name = dice.choice(("rounds.jsonl", "summary.json", "policy.toml", "policy.toml.sig"))
        path = self._work / name if "policy" not in name else self._path(dice.choice(SITES), name)
        if name == "rounds.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            row = dice.choice(rows)
            if dice.random() < 0.2:
                rows.remove(row)
            else:
                row[dice.choice(("uplink_bytes", "downlink_bytes", "nodes_accepted", "nodes_rejected"))] += 1
            path.write_text(to_lines(rows))
        elif name == "summary.json":
            path.write_text(json.dumps({"model_sha256": "0" * 64}))
        else:
            content = bytearray(path.read_bytes())
            content[dice.randrange(len(content) - 1)] ^= 1
            path.write_bytes(content)
        return name

    def signature(self, dice: random.Random) -> str:
        """Change the owner's signature beside the entries."""
        owner, chain = self._log(dice)
        column = dice.choice(("size", "root", "made", "signature"))
        with sqlite3.connect(chain.path) as database:
            (value,) = database.execute(f"SELECT {column} FROM checkpoint").fetchone()  # noqa: S608
            changed = value[:-1] + ("1" if value[-1] != "1" else "2") if isinstance(value, str) else value + 1
            database.execute(f"UPDATE checkpoint SET {column} = ?", (changed,))  # noqa: S608
        database.close()
        return f"{owner}, {column}"
