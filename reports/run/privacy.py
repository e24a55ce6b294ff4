"""Privacy of a run on its page: each guarantee, whom it protects and from whom, or a warning that there is none."""

from fedglm.reports.formats import ABSENT, significant
from fedglm.reports.html.markup import Html, element, join, pairs, prose
from fedglm.reports.run.guarantees import NodeGuarantee, delta_text, node_guarantee, statements
from fedglm.reports.run.pictures import draw_epsilon_by_round
from fedglm.reports.run.sections import figure
from fedglm.run_folder.record import RunRecord, number

_NONE_GIVEN = "No privacy guarantee"
_NOT_AGAINST_SERVER = f"{_NONE_GIVEN} against the server"


def render_privacy(run: RunRecord) -> Html:
    """Render the privacy statements: a warning where the run has no guarantee, or none against the server."""
    text, nodes = run.text("privacy") or "", node_guarantee(run)
    if nodes is None:
        return _without_noise(text) if run.epsilon is None else _of_units(run, text, "Privacy guarantee")
    of_sites, of_nodes = statements(text)
    if run.epsilon is not None:
        return join([_of_units(run, of_sites, "Privacy guarantee, against the server too"), _of_nodes(nodes, of_nodes)])
    return join([_of_nodes(nodes, of_nodes), _open_to_the_server(of_sites)])


def _without_noise(text: str) -> Html:
    body = _begun(text.removeprefix(_NONE_GIVEN)) or "The updates that left the sites may tell about their data."
    title = _NONE_GIVEN if not text or text.startswith(_NONE_GIVEN) else "No differential privacy"
    return _notice("privacy", "warning", title, element("p", prose(body)))


def _open_to_the_server(text: str) -> Html:
    body = _begun(text.removeprefix(_NOT_AGAINST_SERVER)) or "The sites add no noise, and the server sees each update."
    return _notice("privacy-server", "warning", _NOT_AGAINST_SERVER, element("p", prose(body)))


def _of_units(run: RunRecord, text: str, title: str) -> Html:
    body = text or "The run records differential privacy for each site's data; the scenario names the unit it protects."
    delta = delta_text(number(run.summary.get("delta")))
    facts = pairs([("ε, greatest over the sites", significant(run.epsilon, 3)), ("δ", delta)])
    note = "Each site's own ledger decides; the greatest is drawn."
    picture = figure("ε spent, by round", draw_epsilon_by_round(run), note)
    return _notice("privacy", "assurance", title, element("p", prose(body)), facts, picture)


def _of_nodes(nodes: NodeGuarantee, text: str) -> Html:
    body = text or "The run records differential privacy of whole nodes, by noise that the server adds."
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


def _begun(text: str) -> str:
    """What follows a title, as a sentence of its own."""
    body = text.lstrip(" :.")
    return body[:1].upper() + body[1:]


def _notice(anchor: str, kind: str, title: str, *children: str) -> Html:
    heading = element("h2", title, id=f"{anchor}-title")
    named = {"id": anchor, "class_": f"notice {kind}", "aria_labelledby": f"{anchor}-title"}
    return element("section", heading, *children, **named)
