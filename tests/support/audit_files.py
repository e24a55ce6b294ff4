"""Files of empirical audits as they are written beside a run's log, and the rules that a run breaks."""

import json
import tomllib

from fedglm.audit.empirical.results import TRIALS
from fedglm.audit.report.facts import AuditFacts, read_facts
from fedglm.audit.report.gate import Gate, find_breaches
from fedglm.audit.report.items import assess_items


def canary_audit(run, **changes):
    """Return a passed audit of that run's code and model."""
    plan = read_facts(run).plan
    figures = {"kind": "gradients", "canaries": 20000, "claimed": 2.0, "delta": 1e-5, "confidence": 0.9875}
    figures |= {"one_run": 0.9, "f_dp": 1.2, "estimate": 1.99, "estimate_least": 1.9}
    trials = [{"name": name, "outcome": "passed", "said": "as it should be"} for name in TRIALS]
    header = {"code": plan.code, "model": plan.model, "made": "2027-01-04T10:00:00+00:00", "records": "run"}
    return {**header, "left_out": [], "canaries": [figures], "trials": trials, **changes}


def attack_audit(run, **changes):
    """Return attacks on that run's code and model."""
    own = {name: value for name, value in canary_audit(run).items() if name in ("code", "model", "made", "records")}
    result = {"attack": "tokens of a site", "variant": "no noise", "private": False, "coded": False}
    result |= {"auc": 1.0, "low": 0.99, "high": 1.0}
    return {**own, "epsilon": 8.0, "round_epsilon": 1.9, "delta": 1e-3, "results": [result], **changes}


def keep(folder, name, audit):
    """Write an audit beside the run's log."""
    (folder / "audit" / f"{name}.json").write_text(json.dumps(audit))


def facts_of(run):
    """Return what the records in a folder show; facts that were read are taken as they are."""
    return run if isinstance(run, AuditFacts) else read_facts(run)


def statuses(run):
    """Return the status of each item, by its number, of a folder or of facts."""
    return {item.number: item.status for item in assess_items(facts_of(run))}


def broken_by(run, rules):
    """Return the names of the rules that a run, a folder or facts, does not meet, each once."""
    facts = facts_of(run)
    breaches = find_breaches(Gate.model_validate(tomllib.loads(rules)), facts, assess_items(facts))
    return list(dict.fromkeys(breach.rule for breach in breaches))
