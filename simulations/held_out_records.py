"""The held-out records of a finished simulation, on which it evaluated, for whoever changes its model afterwards.

Only of a simulation, whose records are all on this machine, and only where they are public: a built-in's, or a file's
that its user declares to be. A deployed run's records are its sites' own, and are never looked for.
"""

from pathlib import Path
from typing import Any, Final

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import Examples, concatenate, select_evenly
from fedglm.autoglm.federation import FederatedData, load_federation
from fedglm.core.errors import FedglmError
from fedglm.core.untrusted_files import read_regular
from fedglm.run_folder.names import NODES, RUN, SCENARIO
from fedglm.run_folder.record import read_summary
from fedglm.scenarios.scenario import Scenario

_MAX_BYTES: Final = 1 << 24
_COMPARED: Final = ("name", "train", "held_out", "tokens", "units", "classes")


class NotPublic(FedglmError):
    """The held-out records of a run cannot be used; the message says why."""


def load_held_out(run: Path, *, declared_public: bool) -> Examples:
    """Load the held-out records of a simulation, those that it evaluated on.

    Args:
        run: Folder of the run.
        declared_public: Whether the user declares a file of the sites' records public.

    Raises:
        NotPublic: It is no simulation, it is not finished, its records are not declared public, are not on this machine
            or are others by now.
    """
    if (run / RUN).exists() or not (run / NODES).is_dir():
        raise NotPublic("the run is no simulation: its records are its sites' own")
    try:
        scenario = Scenario.from_toml(read_regular(run / SCENARIO, _MAX_BYTES).decode())
        described = read_summary(run).get("sites")
    except (FedglmError, OSError, ValueError) as exc:
        raise NotPublic(f"the run is not finished, or cannot be read ({exc})") from exc
    if scenario.data.source not in BUNDLES and not declared_public:
        raise NotPublic(f"{scenario.data.source} is not declared public: --sites-data-are-public does that")
    nodes, seed = scenario.federation.nodes, scenario.federation.seed
    try:
        data = load_federation(scenario.data, nodes=nodes, seed=seed, model=scenario.model)
    except FedglmError as exc:
        raise NotPublic(f"the run's records cannot be read here ({exc})") from exc
    if not _are_same(data, described):
        raise NotPublic("the run's records are others by now than those that it was trained on")
    share = min(1.0, scenario.evaluation.sequences / sum(len(site.held_out) for site in data.sites))
    return concatenate([select_evenly(site.held_out, share) for site in data.sites])


def _are_same(data: FederatedData, described: Any) -> bool:
    """Return whether sites are what a summary says of them; another release of Python has another ``pydoc``."""
    own = [{key: site[key] for key in _COMPARED} for site in data.describe()["sites"]]
    return isinstance(described, list) and own == [
        {key: site.get(key) for key in _COMPARED} for site in described if isinstance(site, dict)
    ]
