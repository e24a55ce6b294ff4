"""Privacy of a run on its page: each guarantee, whom it protects and from whom, or a warning that there is none."""

from collections.abc import Mapping

from fedglm.privacy.accounting.statement import NO_GUARANTEE_AGAINST_SERVER, TITLES, Guarantee, Statement
from fedglm.reports.formats import ABSENT, significant
from fedglm.reports.html.markup import Html, element, join, pairs, prose
from fedglm.reports.run.guarantees import NodeGuarantee, delta_text, node_guarantee, statements
from fedglm.reports.run.pictures import draw_epsilon_by_round
from fedglm.reports.run.sections import figure
from fedglm.run_folder.record import RunRecord, number


def render_privacy(run: RunRecord) -> Html:
    """Render the privacy statements: a warning where the run has no guarantee, or none against the server."""
    nodes, stated = node_guarantee(run), {each.code: each for each in statements(run.summary, run.settings)}
    of_units, of_nodes = stated.get(Guarantee.UNITS), stated.get(Guarantee.NODES)
    if nodes is None:
        return _without_noise(stated) if run.epsilon is None else _of_units(run, of_units, "Privacy guarantee")
    if run.epsilon is not None:
        title = "Privacy guarantee, against the server too"
        return join([_of_units(run, of_units, title), _of_nodes(nodes, of_nodes)])
    open_to_server = stated.get(Guarantee.NONE_AGAINST_SERVER, NO_GUARANTEE_AGAINST_SERVER)
    title, body = TITLES[Guarantee.NONE_AGAINST_SERVER], _sentence(open_to_server)
    warning = _notice("privacy-server", "warning", title, element("p", prose(body)))
    return join([_of_nodes(nodes, of_nodes), warning])


def _without_noise(stated: Mapping[str, Statement]) -> Html:
    """What there is instead of noise; a guarantee that no figure bears out is not repeated."""
    others = [statement for code, statement in stated.items() if code not in (Guarantee.UNITS, Guarantee.NODES)]
    body = _sentence(others[0]) if others else "The updates that left the sites may tell about their data."
    nothing = not stated or Guarantee.NONE in stated
    title = TITLES[Guarantee.NONE] if nothing else "No differential privacy"
    return _notice("privacy", "warning", title, element("p", prose(body)))


def _of_units(run: RunRecord, stated: Statement | None, title: str) -> Html:
    body = "The run records differential privacy for each site's data; the scenario names the unit it protects."
    body = stated.text if stated else body
    delta = delta_text(number(run.summary.get("delta")))
    facts = pairs([("ε, greatest over the sites", significant(run.epsilon, 3)), ("δ", delta)])
    note = "Each site's own ledger decides; the greatest is drawn."
    picture = figure("ε spent, by round", draw_epsilon_by_round(run), note)
    return _notice("privacy", "assurance", title, element("p", prose(body)), facts, picture)


def _of_nodes(nodes: NodeGuarantee, stated: Statement | None) -> Html:
    body = "The run records differential privacy of whole nodes, by noise that the server adds."
    body = stated.text if stated else body
    facts = [
        ("Protected", "each whole node, with all that it holds"),
        ("Against", "whoever sees the models, but not the server"),
        ("ε, over all rounds", significant(nodes.epsilon, 3)),
        ("δ", delta_text(nodes.delta)),
        ("An update's norm, clipped to", _format_value(nodes.clipping_norm)),
        ("Noise on a round's sum", f"{_format_value(nodes.noise_multiplier)} times that norm"),
        ("Noise on the mean, each parameter", _format_value(nodes.noise_on_mean)),
        ("A node's chance to be in a round", _format_value(nodes.sampling_rate)),
    ]
    title, kept = "Privacy guarantee for whole nodes", element("p", _describe_confidentiality(nodes), class_="note")
    return _notice("privacy-nodes", "assurance", title, element("p", prose(body)), pairs(facts), kept)


def _describe_confidentiality(nodes: NodeGuarantee) -> str:
    """Describe what must stay with the server for the guarantee to hold; this page shows some of it."""
    secret = (
        "ε counts on nobody but the server knowing who took part in which round. "
        if nodes.counts_on_secret_samples
        else ""
    )
    return (
        f"{secret}This page, rounds.jsonl and summary.json are for the server alone: they tell how many nodes took "
        "part, and figures measured on the nodes' data without noise. The models may be passed on."
    )


def _format_value(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _sentence(stated: Statement) -> str:
    """What follows a title, as a sentence of its own."""
    return stated.detail[:1].upper() + stated.detail[1:]


def _notice(anchor: str, kind: str, title: str, *children: str) -> Html:
    heading = element("h2", title, id=f"{anchor}-title")
    named = {"id": anchor, "class_": f"notice {kind}", "aria_labelledby": f"{anchor}-title"}
    return element("section", heading, *children, **named)
