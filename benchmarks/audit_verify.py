"""How long `fedglm audit verify` takes on a log of a million entries, and how near that is to what reading them costs.

    python benchmarks/audit_verify.py --entries 1000000
    python benchmarks/audit_verify.py --entries 100000 --of server

It makes the log and ledger of a site with so many releases, then verifies the folder as the command does: chain, form
of each entry, Merkle tree, signatures, each row of the ledger, plans, policy, epsilon by two accountants. Beside it, in
the same run, what a reader pays who does no more than parse each entry's JSON once and hash it twice, in one process.

Of a server's log it makes the updates that one site signed: each takes a signature to verify.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedglm.audit.verify.verification import verify
from fedglm.privacy.accounting.accountant import bound_epsilon
from fedglm.privacy.custody.store import LEDGER, POLICY, Custody, initialize
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Charge
from fedglm.privacy.log.signed_log import LOG, SignedLog
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.privacy.policy.run_spec import NoisePlan, RunSpec
from fedglm.protocol.signatures import sign_train_reply
from fedglm.run_folder.names import AUDIT

MECHANISM = Mechanism(
    sampling_rate=0.001, steps=1, clipping_norm=1.0, noise_multiplier=2.0, unit="record", records_per_unit=1
)
DELTA = 1e-6
PIECE = 100_000
_POINTS = 24


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the log")
    parser.add_argument("--of", choices=("site", "server"), default="site", help="whose log")
    parser.add_argument("--folder", type=Path, help="to make it in and keep it, or to take it from if it is there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = (asked.folder or Path(name)) / ("custody" if asked.of == "site" else AUDIT)
        if not folder.exists():
            (make if asked.of == "site" else make_server)(folder, asked.entries)
        start = time.perf_counter()
        floor(folder / LOG)
        least = time.perf_counter() - start
        start = time.perf_counter()
        found = verify(folder if asked.of == "site" else folder.parent)
        took = time.perf_counter() - start
        size = sum((folder / name).stat().st_size for name in (LOG, LEDGER) if (folder / name).exists())
    for check in found.checks:
        print(f"{check.name:18} {'held' if check.passed else check.passed}  {check.detail}"[:110])
    entries = (found.server or found.sites[0]).size
    print(f"{entries:,} entries, {size / 1e6:,.0f} MB with the ledger, {len(os.sched_getaffinity(0))} cores")
    print(f"verified in {took:.1f} s, {entries / took:,.0f} entries a second")
    print(f"parsing and hashing them alone, in one process: {least:.1f} s; ratio {took / least:.2f}")


def make(folder: Path, entries: int) -> None:
    """A site that released in every round."""
    server = SigningKey.generate()
    policy = Policy(
        data_set="notes", epsilon=50.0, delta=DELTA, declare_units=1000, unit="record", records_per_unit_at_most=1,
        noise_multiplier_at_least=1.0, clipping_norm_at_most=1.0, steps_at_most=1, servers=(ANY,), plans=(ANY,),
        models=(ANY,), codecs=(ANY,), bytes_at_most=10**9,
    )  # fmt: skip
    initialize(folder, policy, name="berlin")
    site = Custody.open(folder, lambda: [[b"record"]], unit="record")
    noised = NoisePlan(max_participations=entries, mechanism=MECHANISM, max_noise_multiplier=2.0)
    spec = RunSpec(rounds=entries, local_steps=1, noise=noised, codec="topk-sign", density=0.01)
    plan = RunPlan(run="run", spec=spec, parameters=1000, layout="0" * 64, model="0" * 64, code="0" * 64)
    site.log.record_plan(SignedPlan.sign(plan, server), ["plans"])
    noise, releases = MECHANISM.to_fields(), entries - site.log.head.rows
    first = site.make_charge("run", 1, MECHANISM, plan.sha256, "0" * 64, purpose="update", attempt="0" * 32)
    known = np.unique(np.geomspace(1, releases, _POINTS).astype(int))
    spends = [bound_epsilon([replace(MECHANISM.event(), steps=int(steps))], DELTA) for steps in known]
    log = SignedLog(folder / LOG, SigningKey.load(folder / "site.key"))
    for start in range(0, releases, PIECE):
        charges = [released(first, number) for number in range(start, min(start + PIECE, releases))]
        site.ledger.charge(charges[0], None, *charges[1:])
        rows = site.ledger.rows()[start:]
        with log.writing() as put:
            for row in rows:
                epsilon = float(np.interp(row.number, known, np.maximum.accumulate(spends)))
                put("release", entry(row.charge, row.number, row.hash, noise, epsilon))
    print(f"made: {folder / POLICY}")


def make_server(folder: Path, entries: int) -> None:
    """A server that took an update of a site in every round."""
    folder.mkdir(parents=True)
    server, site = SigningKey.generate(), SigningKey.generate()
    SignedLog.create(folder / LOG, server, role="server", name="server")
    log = SignedLog(folder / LOG, server)
    with log.writing() as put:
        put("begun", {"run": "run", "round": 0})
        put("admitted", {"run": "run", "site": "berlin", "key": site.public.hex})
    for start in range(log.head.rows, entries, PIECE):
        with log.writing() as put:
            for number in range(start + 1, min(start + PIECE, entries) + 1):
                put("accepted", accepted(site, number))


def accepted(site: SigningKey, number: int) -> dict[str, object]:
    """As a server writes it."""
    blob, words = number.to_bytes(8, "big"), {"nonce": "0" * 16, "log": f"{number}:{'0' * 32}"}
    signature = base64.b64decode(sign_train_reply(site, words, "run", number, blob, {})).hex()
    release = hashlib.sha256(blob).hexdigest()
    return {
        "run": "run", "round": number, "site": "berlin", "release": release, "bytes": 3805, "nonce": words["nonce"],
        "anchor": words["log"], "measures": None, "signature": signature,
    }  # fmt: skip


def released(like: Charge, number: int) -> Charge:
    """The charge for one more release."""
    digest = hashlib.sha256(number.to_bytes(8, "big")).hexdigest()
    return replace(like, round=number + 1, release=digest, id=digest[:32])


def entry(
    told: Charge, number: int, digest: str, noise: dict[str, str | int | float], epsilon: float
) -> dict[str, object]:
    """As a site writes it, but that epsilon lies between two that accountants gave: they take most of a second each."""
    names = ("run", "round", "data_set", "commitment", "purpose", "plan", "policy", "release", "id")
    own = {"bytes": 3805, "non_zeros": 4288, "codec": "topk-sign", "rules": ["bytes", "metrics", "size"]}
    whole = {name: getattr(told, name) for name in names}
    return {**whole, "mechanism": noise, "row": number, "row_hash": digest, "epsilon": epsilon, "delta": DELTA, **own}


def floor(path: Path) -> None:
    """Parse and hash each entry."""
    raw = bytes(32)
    with contextlib.closing(sqlite3.connect(path)) as database:
        for (text,) in database.execute("SELECT entry FROM entries ORDER BY number"):
            json.loads(text)
            content = text.encode()
            raw = hashlib.sha256(raw + content).digest()
            hashlib.sha256(b"\0" + content).digest()


if __name__ == "__main__":
    main()
