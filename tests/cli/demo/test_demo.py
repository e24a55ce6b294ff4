"""`fedglm demo`: what it refuses, the order of its commands, and that nothing is left running, whatever happens."""

import json
import os
import shlex
import signal
import tomllib

import pytest
from command_line import run_here

from fedglm.cli.demo import demonstration
from fedglm.cli.demo.commands import CommandRunner
from fedglm.cli.demo.demonstration import run_demo
from fedglm.cli.demo.errors import DemoError
from fedglm.cli.demo.plan import POLICY, SITES, Folders
from fedglm.cli.demo.progress import DemoProgress
from fedglm.cli.process.daemon import Daemon
from fedglm.client.site.folder import open_site
from fedglm.privacy.policy.policy import Policy

pytestmark = pytest.mark.usefixtures("unsynced")

SLEEPER = ["sleep", "300"]
SERVER_SETUP = ("provision", "keygen", "sign-policy", "enrol")


class Replaced:
    """Runs the commands that set up for real; `start` starts a sleeper in place of a node, the rest only notes it.

    Args:
        fault: Called with each command's arguments and the folder; raises or returns a code to fail.
    """

    def __init__(self, folder, fault=None):
        self.folder, self.commands, self.fault = folder, [], fault

    def run(self, arguments):
        self.commands.append(arguments)
        if any(word in arguments for word in SERVER_SETUP):
            result = run_here(*arguments)
            return result.code, result.out, result.err
        if self.fault is not None and (code := self.fault(arguments)):
            return code, "", "it went wrong"
        if "start" in arguments:
            state, name = (
                (self.folder / "server" / "state", "superlink")
                if arguments[0] == "server"
                else (open_site(self.folder / arguments[2].rsplit("/", 1)[-1]).state, "supernode")
            )
            Daemon(state, name).start(SLEEPER, {}, ready=lambda: True)
        if arguments[0] == "run":
            run = self.folder / "server" / "runs" / "demo"
            run.mkdir(parents=True)
            (run / "summary.json").write_text(
                '{"rounds": 6, "model_sha256": "ab", "accuracy": 0.9, "loss": 0.3, "epsilon_at_most": 8}'
            )
        return 0, '{"verdict": "whole"}' if "verify" in arguments else "", ""


def demonstrate(folder, *, keep=False, fault=None):
    runner = Replaced(folder, fault)
    with DemoProgress(quiet=True) as progress:
        return runner, run_demo(folder, lambda _: runner, progress, keep=keep)


def running(folder):
    return [pid for daemon in demonstration.list_daemons(Folders(folder)) for pid in daemon.members()]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A demo with sleepers in place of nodes: its folder, its commands, its summary."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    runner, summary = demonstrate(folder)
    return folder, runner.commands, summary


def test_the_stages_follow_one_another_and_nothing_runs_afterwards(done):
    folder, commands, summary = done
    words = [" ".join(word for word in command[:2] if "/" not in word) for command in commands]
    site = ["client keygen", "client sign-policy", "server enrol"]
    assert words == [
        *("provision", *site * 3, "server start", *["client start"] * 3),
        *("run hospital", "audit verify", "audit report", *["client stop"] * 3, "server stop"),
    ]
    assert running(folder) == []
    assert list(summary["seconds"]) == ["set up", "start", "train", "verify", "report", "stop"]
    assert (summary["verdict"], summary["model_sha256"], summary["accuracy"]) == ("whole", "ab", 0.9)
    assert not summary["running"]


def test_each_site_has_its_own_keys_part_of_the_data_and_signed_policy(done):
    folder, _, _ = done
    keys = set()
    for number, name in enumerate(SITES):
        site = open_site(folder / name)
        assert site.settings.data.part == (number, len(SITES))
        policy = Policy.from_toml((site.custody_folder / "policy.toml").read_text(), origin="policy")
        assert policy.without_differential_privacy is False
        assert policy.epsilon == POLICY["epsilon"]
        assert (site.custody_folder / "policy.toml.sig").is_file()
        keys.add(site.key().public.hex)
    assert len(keys) == 3
    assert {path.stem for path in (folder / "server").rglob("*.pub")} == set(SITES)


def test_the_readme_lists_the_very_commands_in_order(done):
    folder, commands, _ = done
    lines = [line.strip() for line in (folder / "README.txt").read_text().splitlines()]
    listed = [tuple(shlex.split(line)[1:]) for line in lines if line.startswith("fedglm ")]
    ran = [tuple(word for word in command if word != "--json") for command in commands]
    assert listed[: len(ran)] == ran
    assert any(line.startswith("edit ") and line.endswith("site-0/policy.toml:") for line in lines)
    filled = tomllib.loads("\n".join(line for line in lines if line.startswith("epsilon = ")).splitlines()[0])
    assert filled == {"epsilon": POLICY["epsilon"]}


def test_kept_running_it_says_how_to_stop(tmp_path):
    runner, summary = demonstrate(tmp_path / "out", keep=True)
    try:
        assert summary["running"]
        assert len(running(tmp_path / "out")) == 4
        assert len(summary["to_stop"]) == 4
        assert "--keep" in (tmp_path / "out" / "README.txt").read_text()
        assert not any("stop" in command for command in runner.commands)
    finally:
        demonstration.stop_everything(Folders(tmp_path / "out"))
    assert running(tmp_path / "out") == []


def test_a_failure_or_ctrl_c_ends_all_that_was_started(tmp_path):
    def fail_at_run(arguments):
        assert arguments[0] != "run" or len(running(tmp_path / "failed")) == 4
        return 3 if arguments[0] == "run" else 0

    with pytest.raises(DemoError, match=r"fedglm run hospital .* failed: it went wrong .*demo\.log.*superlink\.log"):
        demonstrate(tmp_path / "failed", fault=fail_at_run)
    assert running(tmp_path / "failed") == []

    def press_ctrl_c(arguments):
        if arguments[0] == "run":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("a library has made something else of it") from None
        return 0

    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)  # a suite that was started in the background inherits an ignored one
    with pytest.raises(KeyboardInterrupt):
        demonstrate(tmp_path / "stopped", fault=press_ctrl_c)
    assert running(tmp_path / "stopped") == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_folder_that_holds_something_is_refused_and_stays_as_it_was(fedglm, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert "overwrites nothing" in fedglm("demo", "--out", tmp_path).line()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert str(tmp_path / "mine") in fedglm("demo", "--out", tmp_path / "mine").line()


def test_help_names_the_options(fedglm):
    out = fedglm("demo", "--help").out
    assert all(option in out for option in ("--out", "--keep", "--open", "--json"))


def test_output_of_commands_goes_to_the_log_with_their_failures(tmp_path):
    import typer

    from fedglm.core.errors import FedglmError

    app = typer.Typer()

    @app.command()
    def fail() -> None:
        typer.echo("to the log")
        raise FedglmError("no such thing: make one")

    @app.command()
    def bug() -> None:
        raise RuntimeError("a bug")

    @app.command()
    def wait() -> None:
        raise SystemExit(130)

    runner = CommandRunner(typer.main.get_command(app), tmp_path / "log")
    assert runner.run(["fail"]) == (2, "to the log\n", "no such thing: make one")
    assert runner.run(["bug"]) == (1, "", "RuntimeError: a bug")
    with pytest.raises(KeyboardInterrupt):
        runner.run(["wait"])
    log = (tmp_path / "log").read_text()
    assert all(text in log for text in ("$ fedglm fail", "to the log", "exit code 2", "Traceback"))


def test_the_summary_is_json_and_the_command_exits_with_0(fedglm, monkeypatch, tmp_path):
    given = {"folder": "out", "verdict": "whole"}
    monkeypatch.setattr(demonstration, "run_demo", lambda *_, **__: given)
    assert json.loads(fedglm("demo", "--out", tmp_path / "out", "--json").out) == given
