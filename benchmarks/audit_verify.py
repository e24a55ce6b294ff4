"""How long `fedglm audit verify` takes on a log of a million entries, and how near that is to what reading them costs.

    python benchmarks/audit_verify.py --entries 1000000

It makes the log and ledger of a site with so many releases, then verifies the folder as the command does: chain, form
of each entry, Merkle tree, signatures, each row of the ledger, plans, policy, epsilon by two accountants. Beside it, in
the same run, what nobody can go below in one process: parsing each entry's JSON once and hashing it twice.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import time
from pathlib import Path

from fedglm.privacy.audit_verify import verify
from fedglm.privacy.charges import Charge
from fedglm.privacy.custody import LEDGER, POLICY, Custody, establish
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.plan import RunPlan, SignedPlan
from fedglm.privacy.policy import ANY, Policy
from fedglm.privacy.signed_log import LOG, SignedLog

MECHANISM = Mechanism(
    sampling_rate=0.001, steps=1, clipping_norm=1.0, noise_multiplier=2.0, unit="record", records_per_unit=1
)
PIECE = 100_000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the log")
    entries = parser.parse_args().entries
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "custody"
        make(folder, entries)
        start = time.perf_counter()
        floor(folder / LOG)
        least = time.perf_counter() - start
        start = time.perf_counter()
        found = verify(folder)
        took = time.perf_counter() - start
        size = (folder / LOG).stat().st_size + (folder / LEDGER).stat().st_size
    for check in found.checks:
        print(f"{check.name:18} {'held' if check.held else check.held}  {check.said}"[:110])
    print(f"{entries:,} entries, {size / 1e6:,.0f} MB with the ledger, {len(os.sched_getaffinity(0))} cores")
    print(f"verified in {took:.1f} s, {entries / took:,.0f} entries a second")
    print(f"parsing and hashing them alone, in one process: {least:.1f} s; ratio {took / least:.2f}")


def make(folder: Path, entries: int) -> None:
    """A site that released in every round."""
    server = SigningKey.generate()
    policy = Policy(
        data_set="notes", epsilon=50.0, delta=1e-6, declare_units=1000, unit="record", records_per_unit_at_most=1,
        noise_multiplier_at_least=1.0, clipping_norm_at_most=1.0, steps_at_most=1, servers=(ANY,), plans=(ANY,),
        models=(ANY,), codecs=(ANY,), bytes_at_most=10**9,
    )  # fmt: skip
    establish(folder, policy, name="berlin")
    site = Custody.open(folder, [[b"record"]], unit="record")
    plan = RunPlan(
        run="run", rounds=entries, turns=entries, local_steps=1, mechanism=MECHANISM, noise_at_most=2.0, metrics=None,
        codec="topk-sign", density=0.01, parameters=1000, layout="0" * 64, model="0" * 64, recipe="", code="0" * 64,
    )  # fmt: skip
    site.log.admitted(SignedPlan.sign(plan, server), ["plans"])
    noise, releases = MECHANISM.to_fields(), entries - site.log.head.rows
    log = SignedLog(folder / LOG, SigningKey.load(folder / "site.key"))
    for start in range(0, releases, PIECE):
        charges = [charge(site, plan, number) for number in range(start, min(start + PIECE, releases))]
        site.ledger.charge(charges[0], None, *charges[1:])
        rows = site.ledger.rows()[start:]
        with log.writing() as put:
            for row in rows:
                put("release", entry(row.charge, row.number, row.hash, noise))
    print(f"made: {folder / POLICY}")


def charge(site: Custody, plan: RunPlan, number: int) -> Charge:
    """Of one release."""
    release = hashlib.sha256(number.to_bytes(8, "big")).hexdigest()
    return site.charge_of("run", number + 1, MECHANISM, plan.sha256, release, purpose="update")


def entry(told: Charge, number: int, digest: str, noise: dict[str, str | int | float]) -> dict[str, object]:
    """As a site writes it; the epsilon is told by nobody here, for it would take an accountant a million times."""
    names = ("run", "round", "data_set", "commitment", "purpose", "plan", "policy", "release")
    own = {"bytes": 3805, "non_zeros": 4288, "codec": "topk-sign", "rules": ["bytes", "metrics", "size"]}
    whole = {name: getattr(told, name) for name in names}
    return {**whole, "mechanism": noise, "row": number, "row_hash": digest, "epsilon": None, "delta": None, **own}


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
