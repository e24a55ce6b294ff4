"""The figures for Prometheus, and the alerts and the dashboard that are drawn from them."""

import datetime
import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from command_line import Process
from custodies import PRIVATE
from ledgers import charge, tamper
from projects import Site as Keys
from projects import free_ports, make_project
from runs_under_way import Going
from site_folders import make_project as make_server
from site_folders import make_site

from fedglm.cli.process.daemon import Daemon
from fedglm.cli.process.exporter import ProcessCollector
from fedglm.cli.process.process_usage import CpuClock, read_limits, read_processes
from fedglm.cli.process.process_usage import Process as Seen
from fedglm.client.link.faults import LinkFault
from fedglm.client.link.state import LinkRecorder
from fedglm.client.supernode.metrics import SiteCollector
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.errors import Refusal
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.server.deployment.run_log import RunLog
from fedglm.server.errors import ProjectError
from fedglm.server.project.enrolment import enrol, read_enrolled_sites
from fedglm.server.superlink.control import EnrolledNode
from fedglm.server.superlink.metrics import ServerCollector

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
ALERTS = DEPLOY / "alerts.yml"
DASHBOARD = DEPLOY / "grafana.json"
METRIC = re.compile(r"\bfedglm_[a-z0-9_]+")
WORDS = "Erika Mustermann, born 1970-01-01"


def samples(collector):
    """Every sample by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def absent():
    raise ProjectError("the SuperLink does not answer")


@pytest.fixture
def project(tmp_path):
    """A project with a and b enrolled, and a run in which something of everything has happened."""
    made = make_project(tmp_path / "fl")
    for name in ("a", "b"):
        enrol(made, Keys.make(name).hand_over(tmp_path))
    run = Going(made.runs / "trial")
    run.log.rejected(1, WORDS)
    run.log.plan_refused(2, WORDS)
    run.round()
    run.round(fault=WORDS)
    run.rows[-1]["client_epsilon"] = 1.5
    run.log.round_done(run.rows)
    return made


def nodes_of(project, status="online"):
    """What the SuperLink says of site a; it knows no other."""
    seen = datetime.datetime.now(datetime.UTC)
    sites = read_enrolled_sites(project)
    return lambda: [EnrolledNode(7, sites["a"].flower, status, seen)]


@pytest.fixture
def site(tmp_path):
    """A site with a budget, of which two releases took some, and two refusals."""
    made = make_site(tmp_path, make_server(tmp_path), policy=PRIVATE, data={"source": "breast-cancer"})
    ledger = Ledger(made.custody_folder / "ledger.sqlite")
    for number in (1, 2):
        ledger.charge(charge(number), None)
    log = RefusalLog(made.custody_folder / "refusals.jsonl")
    for _ in range(2):
        log.record(Refusal("codecs", WORDS), run="r", round_number=1)
    state = made.home / "model-0123456789abcdef"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    (state / "pending_blob-1.bin").write_bytes(bytes(321))
    LinkRecorder(made.state, made.server).fail(LinkFault.EXPIRED)
    return made


@pytest.fixture
def daemon(tmp_path):
    """A daemon with a child."""
    made = Daemon(tmp_path / "daemon", "superlink")
    made.start([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"], {})
    yield made
    made.stop()


# --- the server's


def test_a_run_s_figures(project):
    found = samples(ServerCollector(project, nodes_of(project)))
    assert value(found, "fedglm_run_rounds_total", run="trial") == 2
    assert value(found, "fedglm_run_rounds_planned", run="trial") == 10
    assert value(found, "fedglm_run_running", run="trial") == 1
    assert value(found, "fedglm_run_bytes_total", run="trial", direction="up", coding="coded") == 400
    assert value(found, "fedglm_run_bytes_total", run="trial", direction="down", coding="dense") == 40_000
    assert value(found, "fedglm_run_updates_total", run="trial", outcome="accepted") == 3
    assert value(found, "fedglm_run_updates_total", run="trial", outcome="rejected") == 1
    assert value(found, "fedglm_run_site_updates_total", run="trial", site="b", outcome="rejected") == 1
    assert value(found, "fedglm_run_nodes_kept_out", run="trial", cause="refused") == 1
    assert value(found, "fedglm_run_nodes_kept_out", run="trial", cause="turned-away") == 1
    assert value(found, "fedglm_run_round_seconds_sum", run="trial") == 4.0
    assert value(found, "fedglm_run_round_seconds_count", run="trial") == 2
    assert value(found, "fedglm_run_client_epsilon", run="trial") == 1.5
    assert abs(value(found, "fedglm_run_last_progress_timestamp_seconds", run="trial") - time.time()) < 60
    assert not any(WORDS in word for _, labels in found for pair in labels for word in pair)


def test_a_run_that_has_ended(project):
    collector = ServerCollector(project, nodes_of(project))
    samples(collector)
    RunLog(project.runs / "trial").failed(OSError("gone"), final=True)
    found = samples(collector)
    assert value(found, "fedglm_run_running", run="trial") == 0
    assert value(found, "fedglm_run_failed", run="trial") == 1
    assert value(found, "fedglm_exporter_unreadable", part="runs") == 0


def test_only_the_latest_runs_take_part(project):
    for number in range(15):
        Going(project.runs / f"r{number:02}").round()
    found = samples(ServerCollector(project, nodes_of(project)))
    runs = {dict(labels)["run"] for name, labels in found if name == "fedglm_run_running"}
    assert runs == {f"r{number:02}" for number in range(5, 15)}


def test_sites_and_certificate(project):
    found = samples(ServerCollector(project, nodes_of(project)))
    assert value(found, "fedglm_superlink_up") == 1
    assert value(found, "fedglm_sites_enrolled") == 2
    assert value(found, "fedglm_site_online", site="a") == 1
    assert value(found, "fedglm_site_online", site="b") == 0
    assert 360 < value(found, "fedglm_certificate_seconds_left", certificate="server") / 86400 <= 365
    assert value(found, "fedglm_certificate_seconds_left", certificate="authority") / 86400 > 3600
    found = samples(ServerCollector(project, nodes_of(project, "offline")))
    assert value(found, "fedglm_site_online", site="a") == 0


def test_a_superlink_that_is_down_is_a_figure_too(project):
    for collector in (ServerCollector(project, absent), ServerCollector(project)):  # the latter really asks
        found = samples(collector)
        assert value(found, "fedglm_superlink_up") == 0
        assert value(found, "fedglm_site_online", site="a") == 0
        assert value(found, "fedglm_run_rounds_total", run="trial") == 2


def test_what_cannot_be_read_is_told_and_hides_nothing_else(project):
    project.certificate.write_text("damaged")
    found = samples(ServerCollector(project, nodes_of(project)))
    assert value(found, "fedglm_exporter_unreadable", part="certificate") == 1
    assert value(found, "fedglm_exporter_unreadable", part="runs") == 0
    assert value(found, "fedglm_run_rounds_total", run="trial") == 2


# --- the site's


def test_a_site_s_figures(site):
    found = samples(SiteCollector(site))
    spent = Ledger(site.custody_folder / "ledger.sqlite").spending("notes").at(1e-3).epsilon
    assert value(found, "fedglm_site_epsilon_spent", data_set="notes") == spent
    assert value(found, "fedglm_site_epsilon_limit", data_set="notes") == 50.0
    assert value(found, "fedglm_site_epsilon_left", data_set="notes") == 50.0 - spent
    assert value(found, "fedglm_site_releases_total", data_set="notes", purpose="update") == 2
    assert value(found, "fedglm_site_refusals_total", rule="codecs") == 2
    assert abs(value(found, "fedglm_site_last_refusal_timestamp_seconds") - time.time()) < 60
    assert abs(value(found, "fedglm_site_last_message_timestamp_seconds") - time.time()) < 60
    assert value(found, "fedglm_site_update_bytes") == 321
    assert value(found, "fedglm_site_disk_free_bytes", folder="state") > 0
    assert not any(WORDS in word for _, labels in found for pair in labels for word in pair)


def test_a_new_charge_is_seen_at_the_next_scrape(site):
    collector = SiteCollector(site)
    before = value(samples(collector), "fedglm_site_epsilon_spent", data_set="notes")
    Ledger(site.custody_folder / "ledger.sqlite").charge(charge(3), None)
    assert value(samples(collector), "fedglm_site_epsilon_spent", data_set="notes") > before


def test_after_a_release_without_noise_nothing_is_left(site):
    Ledger(site.custody_folder / "ledger.sqlite").charge(charge(3, mechanism=None, data_set="others"), None)
    found = samples(SiteCollector(site))
    for name in ("notes", "others"):  # the same content under another name
        assert value(found, "fedglm_site_epsilon_spent", data_set=name) == float("inf")
    assert value(found, "fedglm_site_epsilon_left", data_set="notes") == 0


def test_a_site_that_has_signed_nothing_yet(tmp_path):
    made = make_site(tmp_path, make_server(tmp_path), data={"source": "breast-cancer"})
    for path in made.custody_folder.iterdir():
        path.unlink()
    found = samples(SiteCollector(made))
    assert value(found, "fedglm_site_policy_in_force") == 0
    assert {name for name, _ in found if "epsilon" in name} == set()
    assert value(found, "fedglm_exporter_unreadable", part="ledger") == 0


def test_a_damaged_ledger_is_told_and_hides_nothing_else(site):
    tamper(site.custody_folder / "ledger.sqlite", "UPDATE charges SET entry = 'x'")
    found = samples(SiteCollector(site))
    assert value(found, "fedglm_exporter_unreadable", part="ledger") == 1
    assert value(found, "fedglm_exporter_unreadable", part="refusals") == 0
    assert value(found, "fedglm_site_refusals_total", rule="codecs") == 2


# --- processes


def test_a_daemon_s_processes(daemon):
    found = samples(ProcessCollector(daemon))
    assert value(found, "fedglm_process_up", process="superlink") == 1
    assert value(found, "fedglm_process_count", process="superlink") == 2
    held = value(found, "fedglm_process_memory_bytes", process="superlink")
    assert 10**6 < held < value(found, "fedglm_process_memory_limit_bytes", process="superlink")
    assert value(found, "fedglm_process_cores", process="superlink") > 0
    daemon.stop()
    assert samples(ProcessCollector(daemon)) == {("fedglm_process_up", (("process", "superlink"),)): 0}


def test_cpu_seconds_of_a_busy_process_are_counted():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            (before,) = read_processes([process.pid])
            end = time.monotonic() + 30
            while read_processes([process.pid])[0].cpu_s < before.cpu_s + 0.2:
                assert time.monotonic() < end
            assert read_limits(process.pid).cores >= 1
        finally:
            process.kill()
    assert read_processes([process.pid]) == []
    with pytest.raises(OSError, match="process"):
        read_limits(process.pid)


def seen(pid, cpu_s, parent=1, started=0):
    return Seen((pid, started), pid, parent, cpu_s, 0)


def test_the_clock_of_cpu_seconds_never_falls_and_counts_nothing_twice():
    clock = CpuClock()
    assert clock.read([seen(1, 5.0, 0), seen(2, 7.0), seen(3, 1.0, parent=99)]) == 13
    assert clock.read([seen(1, 5.0, 0), seen(3, 1.0, parent=99)]) == 13  # 2 has ended; 1 has not taken note
    assert clock.read([seen(1, 12.5, 0), seen(3, 1.0, parent=99)]) == 13.5
    assert clock.read([seen(1, 12.5, 0)]) == 13.5  # nobody of ours takes over the seconds of 3
    assert clock.read([seen(1, 13.5, 0)]) == 14.5
    assert clock.read([seen(1, 2.0, 0, started=9)]) == 16.5  # the daemon was started again, under the same number
    assert clock.read([]) == 16.5


# --- served


@pytest.fixture
def new_site(tmp_path):
    """A site with a budget from which nothing has been taken."""
    return make_site(tmp_path, make_server(tmp_path), policy=PRIVATE, data={"source": "breast-cancer"})


@pytest.mark.parametrize("kind", ["server", "client"])
def test_the_command_serves_them_without_torch(kind, request):
    folder = request.getfixturevalue("project" if kind == "server" else "new_site").folder
    (port,) = free_ports(1)
    place = ("-C", folder) if kind == "server" else (folder,)
    with Process(kind, "metrics", *place, "--port", port) as process:
        process.until(lambda: listens_on(port))
        text = scrape(port)
        assert ("fedglm_run_rounds_total" if kind == "server" else "fedglm_site_epsilon_left") in text
        assert WORDS not in text
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        assert listens_on(port) == {"0100007F"}, "127.0.0.1 alone"
        process.press_ctrl_c()
        assert process.finish().code == 0


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return answer.read().decode()


def listens_on(port):
    """Addresses, as /proc writes them, at which somebody listens on the port."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


def test_a_port_in_use_is_named(project, fedglm):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        assert (
            f"port {port} at 127.0.0.1 cannot be opened"
            in fedglm("server", "metrics", "-C", project.folder, "--port", port).line()
        )


# --- alerts and dashboard


@pytest.fixture
def given(project, site, daemon):
    """Names of all samples that the exporters give."""
    collectors = (ServerCollector(project, nodes_of(project)), SiteCollector(site), ProcessCollector(daemon))
    return {name for collector in collectors for name, _ in samples(collector)}


def expressions():
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return rules, [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_alerts_and_dashboard_ask_for_what_the_exporters_give(given):
    rules, queries = expressions()
    assert {name for text in rules for name in METRIC.findall(text)} <= given
    dashboard = {name for text in queries for name in METRIC.findall(text)}
    assert dashboard == given, "what is given is shown"


def test_every_alert_says_what_helps_and_the_thresholds_are_the_articles():
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in rules]
    assert len(set(names)) == len(names)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["remedy"]
    limit = {rule["alert"]: rule["expr"].split(">")[-1].split("<")[-1].strip() for rule in rules}
    assert limit["FedglmCpuCritical"] == "0.90"
    by_name = {rule["alert"]: rule["expr"] for rule in rules}
    assert "> 0.75" in by_name["FedglmCpuHigh"]
    assert "> 0.80" in by_name["FedglmMemoryHigh"]
    assert limit["FedglmMemoryCritical"] == "0.95"
    assert limit["FedglmEpsilonLow"] == "0.10"
    assert limit["FedglmCertificateEnds"] == "30 * 86400"
    assert "> 1800" in by_name["FedglmNoRound"]


def test_labels_in_texts_are_those_of_the_figures(project, site, daemon):
    """An annotation with a label that its figure lacks is an empty place in somebody's mail."""
    collectors = (ServerCollector(project, nodes_of(project)), SiteCollector(site), ProcessCollector(daemon))
    labels = {}
    for collector in collectors:
        for name, pairs in samples(collector):
            labels.setdefault(name, set()).update(dict(pairs))
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            known = labels[METRIC.findall(rule["expr"])[0]]
            assert named <= known | {"instance"}, rule["alert"]


def test_the_dashboard_is_whole():
    board = json.loads(DASHBOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert [target["refId"] for target in panel["targets"]] == [*"ABCDE"][: len(panel["targets"])]
    variables = {variable["name"] for variable in board["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__all"}
    assert asked == variables
