"""README.txt of the demo's folder: the commands that were run, for the server and for each site, as a template."""

from collections.abc import Iterable, Mapping
from typing import Final

from fedglm.cli.demo.commands import format_command
from fedglm.cli.demo.forms import format_line
from fedglm.cli.demo.plan import DELTA, EPSILON, RUN, SITES, UNITS, Command, Folders, Stage, Step
from fedglm.core.files import write_atomically

_TEXT: Final = """\
A federation of one server and {count} sites, all on this machine
{rule}

`fedglm demo` ran the commands below, in this order. This folder is what a real deployment leaves behind, and a
template to copy: server/ is the server's project, and each of {first} ... {last} is the folder of a site. demo.log has
the output of all commands. The run is in server/runs/{run}, with its page report.html and audit/report.html for
auditors.

{stages}

The server alone
----------------
{server}

Each site, on its own machine
-----------------------------
{site}

For a real deployment, change
-----------------------------
- Machines: nothing of server/ goes to a site but its kit (server/kits/SITE.zip, nothing in it is secret), and nothing
  of a site to the server but SITE.pub. Compare the fingerprints by telephone. Make new folders: the keys here were made
  on one machine.
- Address: --host is the DNS name under which the sites reach the server, and --listen is left out (it listens on all
  addresses then); --port and --control-port too (8443 and 8444). Only --port must be open to the sites.
- Records: in [data] of each site.toml, `source` is the site's own file, with label_field, class_names, feature_fields
  and unit_field; `share` goes, for it deals out one file in a trial.
- Scenario: a file of your own in place of `hospital` (fedglm simulate --show hospital prints that one), with the
  classes and feature ranges of your records, and federation.reference: records for the server to check updates on.
- Policy: with the person who answers for the records. Here `plans = ["*"]` takes any run of this server; put in the
  SHA-256 of the terms that fedglm run --terms writes and fedglm client plan shows. Here the whole budget of the records
  (epsilon {epsilon:g}, delta {delta:g}, {units} units declared) is for one run, and that run has spent it.
- Services: systemd or a container starts `fedglm server start --foreground` and `fedglm client start --foreground`.

docs/deploy/README.md of the repository says all of it.
"""

_TITLES: Final[Mapping[Stage, str]] = {
    "set up": "Set up",
    "start": "Start",
    "train": "Train",
    "verify": "Verify all records",
    "report": "Write the audit report",
    "stop": "Stop",
}


def write_readme(folders: Folders, steps: Mapping[Stage, list[Step]], *, keep: bool) -> None:
    """Write `README.txt`.

    Args:
        folders: Folders of the demo.
        steps: The steps of each stage.
        keep: Whether the federation was left running, so that the last stage was not run.
    """
    title = f"A federation of one server and {len(SITES)} sites, all on this machine"
    parts = []
    for stage, planned in steps.items():
        note = " (not run: --keep leaves it running)" if keep and stage == "stop" else ""
        heading = f"{_TITLES[stage]}{note}"
        parts.append("\n".join([heading, "-" * len(heading), *(f"  {line}" for line in describe(planned))]))
    everything = [step for planned in steps.values() for step in planned]
    text = _TEXT.format(
        count=len(SITES),
        rule="=" * len(title),
        first=SITES[0],
        last=SITES[-1],
        stages="\n\n".join(parts),
        server="\n".join(f"  {line}" for line in describe(_of(everything, "server"))),
        site="\n".join(f"  {line}" for line in describe(_of(everything, SITES[0]))),
        run=RUN,
        epsilon=EPSILON,
        delta=DELTA,
        units=UNITS,
    )
    write_atomically(folders.out / "README.txt", text)


def describe(steps: Iterable[Step]) -> list[str]:
    """Describe each step in lines: a command as it is typed, and what is filled in into a file."""
    lines = []
    for step in steps:
        if isinstance(step, Command):
            lines.append(format_command(step.arguments))
        else:
            lines.append(f"edit {step.path}:")
            lines += [f"    {format_line(key, value)}" for key, value in step.values.items()]
    return lines


def _of(steps: Iterable[Step], where: str) -> list[Step]:
    return [step for step in steps if step.where == where]
