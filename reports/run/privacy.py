"""Privacy of a run on its page: each guarantee, whom it protects and from whom, or a warning that there is none."""

from collections.abc import Mapping

from fedglm.privacy.accounting.statement import NO_GUARANTEE_AGAINST_SERVER, TITLES, Guarantee, Statement
from fedglm.reports.formats import ABSENT, format_number
from fedglm.reports.html.markup import Html, description_list, element, join, prose
from fedglm.reports.run.guarantees import NodeGuarantee, format_delta, read_node_guarantee, read_statements
from fedglm.reports.run.pictures import draw_epsilon_by_round
from fedglm.reports.run.sections import figure
from fedglm.run_folder.record import RunRecord, number


def render_privacy(run: RunRecord) -> Html:
    """Render the privacy statements: a warning where the run has no guarantee, or none against the server."""
    nodes, stated = read_node_guarantee(run), {each.code: each for each in read_statements(run.summary, run.settings)}
    of_units, of_nodes = stated.get(Guarantee.UNITS), stated.get(Guarantee.NODES)
    if nodes is None:
        if run.epsilon is None and run.epsilon_limit is None:
            return _render_no_guarantee(stated)
        return _render_unit_guarantee(run, of_units, "Privacy guarantee")
    if run.epsilon is not None or run.epsilon_limit is not None:
        title = "Privacy guarantee, against the server too"
        return join([_render_unit_guarantee(run, of_units, title), _render_node_guarantee(nodes, of_nodes)])
    open_to_server = stated.get(Guarantee.NONE_AGAINST_SERVER, NO_GUARANTEE_AGAINST_SERVER)
    title, body = TITLES[Guarantee.NONE_AGAINST_SERVER], _write_detail(open_to_server)
    warning = _render_notice("privacy-server", "warning", title, element("p", prose(body)))
    return join([_render_node_guarantee(nodes, of_nodes), warning])


def _render_no_guarantee(stated: Mapping[str, Statement]) -> Html:
    """Render the statements of a run without noise; a guarantee without an epsilon in the figures is not repeated."""
    others = [statement for code, statement in stated.items() if code not in (Guarantee.UNITS, Guarantee.NODES)]
    body = _write_detail(others[0]) if others else "The updates that left the sites may tell about their data."
    has_none = not stated or Guarantee.NONE in stated
    title = TITLES[Guarantee.NONE] if has_none else "No differential privacy"
    return _render_notice("privacy", "warning", title, element("p", prose(body)))


def _render_unit_guarantee(run: RunRecord, stated: Statement | None, title: str) -> Html:
    body = "The run records differential privacy for each site's data; the scenario names the unit it protects."
    body = stated.text if stated else body
    delta = format_delta(number(run.summary.get("delta")))
    spent = ("ε, greatest over the sites", format_number(run.epsilon, 3))
    if run.epsilon is None:  # the ledgers are at the sites
        spent = ("ε, at most, by each site's own ledger", format_number(run.epsilon_limit, 3))
    facts = description_list([spent, ("δ", delta)])
    note = "Each site's own ledger decides; the greatest is drawn."
    picture = figure("ε spent, by round", draw_epsilon_by_round(run), note)
    return _render_notice("privacy", "assurance", title, element("p", prose(body)), facts, picture)


def _render_node_guarantee(nodes: NodeGuarantee, stated: Statement | None) -> Html:
    body = "The run records differential privacy of whole nodes, by noise that the server adds."
    body = stated.text if stated else body
    facts = [
        ("Protected", "each whole node, with all that it holds"),
        ("Against", "whoever sees the models, but not the server"),
        ("ε, over all rounds", format_number(nodes.epsilon, 3)),
        ("δ", format_delta(nodes.delta)),
        ("An update's norm, clipped to", _format_value(nodes.clipping_norm)),
        ("Noise on a round's sum", f"{_format_value(nodes.noise_multiplier)} times that norm"),
        ("Noise on the mean, each parameter", _format_value(nodes.noise_on_mean)),
        ("A node's chance to be in a round", _format_value(nodes.sampling_rate)),
    ]
    title, note = "Privacy guarantee for whole nodes", element("p", _describe_confidentiality(nodes), class_="note")
    return _render_notice("privacy-nodes", "assurance", title, element("p", prose(body)), description_list(facts), note)


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


def _write_detail(stated: Statement) -> str:
    """Write the detail of a statement as a sentence of its own."""
    return stated.detail[:1].upper() + stated.detail[1:]


def _render_notice(anchor: str, kind: str, title: str, *children: str) -> Html:
    heading = element("h2", title, id=f"{anchor}-title")
    named = {"id": anchor, "class_": f"notice {kind}", "aria_labelledby": f"{anchor}-title"}
    return element("section", heading, *children, **named)
