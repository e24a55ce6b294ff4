"""A run and its pictures: loss by round, and by bytes.

    pip install 'fedglm[simulation]'
    python examples/plot_a_run.py                    # the scenario hospital, without noise, half a minute
    python examples/plot_a_run.py my.toml            # another scenario

prints a line for each round and where the picture is:

    round 1: loss 0.4357
    ...
    runs/hospital-20270101-120000/loss.png
"""

import sys

import matplotlib

matplotlib.use("Agg")  # a file, no window
from matplotlib import pyplot

import fedglm


class Printed(fedglm.SimulationCallbacks):
    """One line a round."""

    def round_done(self, rows):
        """Print the newest."""
        print(f"round {rows[-1]['round']}: loss {rows[-1]['loss']:.4f}", flush=True)


scenario = sys.argv[1] if len(sys.argv) > 1 else "hospital"
result = fedglm.simulate(scenario, no_dp=True, settings={"evaluation.baselines": []}, callbacks=Printed())

rounds = [row["round"] for row in result.rounds]
losses = [row["loss"] for row in result.rounds]
sent, kilobytes = 0, []
for row in result.rounds:
    sent += row["uplink_bytes"] + row["downlink_bytes"]
    kilobytes.append(sent / 1e3)

figure, (by_round, by_bytes) = pyplot.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
by_round.plot(rounds, losses, marker="o")
by_round.set(xlabel="round", ylabel="held-out loss")
by_bytes.plot(kilobytes, losses, marker="o")
by_bytes.set(xlabel="kB sent, both ways")
figure.suptitle(
    f"{result.summary['scenario']}: {result.summary['coding']} up, {result.summary['downlink_coding']} down"
)
picture = result.paths.folder / "loss.png"
figure.savefig(picture)
print(picture)
