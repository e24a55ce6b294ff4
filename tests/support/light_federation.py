"""A federation of two sites that hold light releases, in one process; and validations of them."""

import json
from dataclasses import replace

from audited_run import kept_run
from custodies import SERVER, custody
from fake_grid import answering
from light_releases import FACTS, make_small_model, write
from tiny_federation import tiny_node

from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.client.light.shelf import LightShelf, hash_manifest
from fedglm.inference.release.manifest import hash_bytes
from fedglm.inference.release.reader import open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import Check, conclude
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.protocol.messages import RECORD, RELEASE
from fedglm.server.deployment.light_store import LightStore

SITES = "ab"


def validation_of(release, *, passed=True):
    """What a node finds of a release: that it works here, or that it does not."""
    check = Check(name="fast logits", passed=passed, detail="off by 0.001" if passed else "off by 100")
    made = conclude(hash_bytes(release.manifest.to_bytes()), [check], runtime="1.32.0", threads=1)
    return made.model_copy(update={"made": "2027-01-01T00:00:00+00:00"})


def unfit(release):
    """As `validation_of`, of a release that does not work."""
    return validation_of(release, passed=False)


class Maker:
    """Writes a small release after a round, as `LightMaker` does, with the next number.

    With `most` it makes no more than so many, and says that the next one missed its goals.
    """

    def __init__(self, folder, *, first=1, most=100, reason=None, key=SERVER):
        self.folder, self.version, self.left, self.reason, self.key = folder, first - 1, most, reason, key

    def make(self, _vector, server_round, model_sha256):
        outcome = LightOutcome(round=server_round, model_sha256=model_sha256, tolerance=0.05)
        if self.reason is not None or not self.left:
            return replace(outcome, reason=self.reason or "60x was reached at a loss +7.1%")
        self.version, self.left = self.version + 1, self.left - 1
        facts = FACTS.model_copy(update={"run": {"version": self.version}})
        size = write(self.folder / "light", model=make_small_model(), key=self.key, facts=facts)
        release = open_release(self.folder / "light", trust=Trust.unverified())
        return replace(outcome, version=self.version, manifest=hash_manifest(release), bytes=size.bytes)


class Federation:
    """Sites a and b, which sign, with their light releases; and a server with a store of its own.

    Attributes:
        shelves: The sites' light releases, by name.
        keys: Their keys in the last run, by name.
    """

    def __init__(self, folder, *, check=validation_of, **policy):
        self.folder, self.policy, self.keys = folder, policy, {}
        self.shelves = {name: LightShelf(folder / "light" / name, [SERVER.public], check=check) for name in SITES}
        self.messages = []

    def run(self, name="run", *, maker=None, spoil=None, tamper=None, lose=None, rounds=1, **changes):
        """Hold a run.

        Args:
            name: Name of its folder.
            maker: Makes the releases; False makes none.
            spoil: Is called with each site's name and reply to an offer, and may change the reply.
            tamper: Changes of the fields of each offer.
            lose: Is called with each site's name and the offered release (None for a question), and says what is lost
                on the way: the "message", the "reply", or None for nothing.
            rounds: Number of rounds.
            changes: As for `federate`.
        """
        run = self.folder / name
        run.mkdir(parents=True, exist_ok=True)  # it may go on
        keys = self.keys = {site: custody(run / "nodes" / site / "custody", **self.policy).key for site in SITES}
        nodes = {10 - i: self._node(run, site, i, keys[site], spoil, tamper, lose) for i, site in enumerate(SITES)}
        coordinator = kept_run(
            run,
            nodes,
            mechanism=None,
            rounds=rounds,
            sites={site: key.public for site, key in keys.items()},
            light=None if maker is False else maker or Maker(run),
            light_store=LightStore(self.folder / "state", SERVER.public, run),
            **changes,
        )
        (run / "done.json").write_text(json.dumps({"model_sha256": coordinator.model_sha256, "rounds": rounds}))
        return run

    def _node(self, run, site, number, key, spoil, tamper, lose):
        node = tiny_node(run / "nodes", site, data_seed=number, rows=20)
        answer = answering(node, key=key, light=self.shelves[site], **self.policy)

        def act(message):
            if message.metadata.message_type != "query.light":
                return answer(message)
            release = message.content[RECORD].get(RELEASE)
            self.messages.append((site, release))
            lost = lose and lose(site, release)
            if lost == "message":
                return None
            if tamper is not None:
                message.content[RECORD].update(tamper)
            reply = answer(message)
            if spoil is not None:
                spoil(site, reply)
            return None if lost == "reply" else reply

        return act

    def sent(self):
        """Sizes of what was sent since the last call, by site; None for a question."""
        sent = {site: [None if b is None else len(b) for s, b in self.messages if s == site] for site in SITES}
        self.messages.clear()
        return sent


def entries(path, *kinds):
    found = []
    SignedLog(path, on_entry=found.append)
    return [entry for entry in found if entry["kind"] in kinds]


def log_of(run):
    return run / "audit" / "log.sqlite"
