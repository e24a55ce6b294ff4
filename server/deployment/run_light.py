"""Light releases of a run of real sites: what `run.json` says of them, and what makes them in the server's process.

The process imports torch only when a model is to be made light, and builds the model anew for that.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator

from fedglm.autoglm.light.run_release.maker import LightMaker
from fedglm.autoglm.settings import DataSettings, LightSettings, ModelSettings
from fedglm.core.files import write_atomically
from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.deployment.light_store import LightStore
from fedglm.server.errors import ProjectError

if TYPE_CHECKING:
    import torch

    from fedglm.autoglm.tasks.task import Task

_COUNTER: Final = "light.version"


class LightRun(BaseModel):
    """What the light releases of a run are made of.

    Attributes:
        scenario: Name of the scenario.
        model: Settings of the model, with those of the release.
        data: Settings of the data, which say what text is public.
        seed: Seed of the model's initialization, of trainings, and of what is drawn.
        epsilon: Maximum privacy loss of each site over the run; None for a run without noise.
        delta: Its delta.
        unit: Its privacy unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: str
    model: ModelSettings
    data: DataSettings
    seed: int
    epsilon: float | None = None
    delta: float | None = None
    unit: str | None = None

    @model_validator(mode="after")
    def _makes_one(self) -> Self:
        if self.model.light is None:
            raise ValueError("no light release is asked for")
        return self

    @property
    def settings(self) -> LightSettings:
        """Settings of the releases."""
        assert self.model.light is not None  # noqa: S101 - checked above
        return self.model.light

    def make_maker(self, folder: Path, state: Path, key: SigningKey) -> LightMaker:
        """Return what makes the releases.

        Args:
            folder: Folder of the run.
            state: Folder of the project's state, where the releases of all its runs are counted.
            key: Key of the server, which signs.
        """
        kept = LightStore(state, key.public, folder).find_newest()
        return LightMaker(
            settings=self.settings,
            build=self._build,
            data=self.data,
            seed=self.seed,
            folder=folder,
            key=key,
            describe=self._describe,
            next_version=lambda _: count_release(state, above=0 if kept is None else kept.version),
        )

    def _build(self) -> "tuple[torch.nn.Module, Task]":
        from fedglm.autoglm.models.build import build_model
        from fedglm.autoglm.site_data import make_public_task

        task = make_public_task(self.data, self.model)
        return build_model(self.model, task, seed=self.seed), task

    def _describe(self) -> dict[str, Any]:
        known: dict[str, Any] = {"scenario": self.scenario}
        if self.epsilon is not None:
            known |= {"epsilon": self.epsilon, "delta": self.delta, "privacy_unit": self.unit}
        return known


def count_release(state: Path, *, above: int = 0) -> int:
    """Return the number of a new release of a project: greater than that of every one before, whatever the run.

    Args:
        state: Folder of the project's state.
        above: Number of the newest release that is kept: the count may have been lost, or put back.

    Raises:
        ProjectError: The file with the last number is damaged.
        StorageError: The new number cannot be written.
    """
    path = state / _COUNTER
    try:
        last = int(path.read_text())
    except FileNotFoundError:
        last = 0
    except (OSError, ValueError) as exc:
        raise ProjectError(
            f"{path} is damaged ({exc}): write the number of the last light release into it; sites take no lower one"
        ) from exc
    number = max(last, above) + 1
    write_atomically(path, f"{number}\n", mode=0o600)
    return number
