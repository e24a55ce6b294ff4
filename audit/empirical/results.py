"""What the empirical audits of a run keep in its `audit/`, and how it is read back: nothing there is believed unread.

Whether an audit was passed is computed from its figures, whatever the file says. Who reads one asks whether it was made
of the run's own code and model: `is_of`.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.core.validation_errors import first_place
from fedglm.privacy.policy.run_plan import RunPlan
from fedglm.run_folder.record import ReportError

CANARIES, ATTACK = "canaries.json", "attack.json"
"""Files of a run's `audit/`."""

TRIALS: Final = (
    *("contribution of a record", "contribution of a unit", "records of a unit", "independence of records"),
    *("a broken record", "noise, nobody drawn", "noise, all drawn", "fresh noise", "sampling"),
)
"""Names of the trials, all of which an audit that was passed has: see `audit.empirical.trials.TRIALS`."""

_MAX_BYTES: Final = 64 * 2**20

_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_FIGURE = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_AREA = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    """Fields that are computed are in the file for people, and ignored when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _File(_Part):
    """What both files say.

    Attributes:
        code: SHA-256 of the code that was audited.
        model: SHA-256 of the weights that it started from.
        made: When: UTC, ISO 8601 to the second.
        records: Whether it was made with the run's own records, or with stand-ins because those are at the sites.
        precision: Format and device that it was computed in; nodes elsewhere may have chosen another.
        left_out: What could not be tried, and why.
    """

    code: _SHA256
    model: _SHA256
    made: str
    records: Literal["run", "stand-in"]
    precision: str = "unknown"
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What `write` wrote; None where there is no such file.

        Raises:
            ReportError: It is damaged.
        """
        try:
            return cls.model_validate_json(read_regular(path, _MAX_BYTES))
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            raise ReportError(f"{path} is damaged at {first_place(exc) or 'its beginning'}: audit again") from exc
        except OSError as exc:
            raise ReportError(f"{path} cannot be read: {exc.strerror}") from exc

    def write(self, path: Path) -> None:
        """Write it, whole; raises StorageError."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    def is_of(self, plan: RunPlan | None) -> bool:
        """Whether it was made with the code and the starting weights of that run."""
        return plan is not None and (self.code, self.model) == (plan.code, plan.model)


class CanaryFigures(_Part):
    """What the canaries of one kind show: see `audit.empirical.canaries.CanaryResult`."""

    kind: Literal["gradients", "records"]
    canaries: Annotated[int, Field(ge=1)]
    claimed: Annotated[float, Field(ge=0, le=2.1)]  # 2 is the most that is audited; the accountants are near to 0.02
    delta: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    one_run: _FIGURE
    f_dp: _FIGURE
    estimate: _FIGURE
    estimate_least: _FIGURE

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bound(self) -> float:
        """The greater of the rigorous bounds."""
        return max(self.one_run, self.f_dp)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def contradicts(self) -> bool:
        """Whether the claim is wrong, for certain but for the confidence."""
        return self.bound > self.claimed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubts(self) -> bool:
        """Whether the estimate lies above the claim, which proves nothing."""
        return self.estimate_least > self.claimed


class Trial(_Part):
    """What a trial showed: see `audit.empirical.trials.TrialResult`."""

    name: str
    outcome: Literal["passed", "failed", "not made"]
    said: str


class CanaryAudit(_File):
    """`canaries.json`: each kind of canaries, and each trial of the training code."""

    canaries: Annotated[tuple[CanaryFigures, ...], Field(min_length=1)]
    trials: Annotated[tuple[Trial, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim, and each of `TRIALS` was made and passed."""
        right = {trial.name for trial in self.trials} >= set(TRIALS)
        right = right and all(trial.outcome == "passed" for trial in self.trials)
        return right and not any(kind.contradicts for kind in self.canaries)


class AttackFigures(_Part):
    """What one attack achieves on one variant of the update.

    Attributes:
        attack: Its name.
        variant: Of the update.
        private: Whether that has noise.
        coded: Whether it is compressed.
        auc: Area under the ROC curve, 0.5 for guesses.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
    """

    attack: str
    variant: str
    private: bool
    coded: bool
    auc: _AREA
    low: _AREA
    high: _AREA


class AttackAudit(_File):
    """`attack.json`: each attack on each variant.

    Attributes:
        epsilon: That the noise of the private variants has over the whole run.
        round_epsilon: That the one attacked round spends of it.
    """

    epsilon: Annotated[float, Field(gt=0)]
    round_epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    results: Annotated[tuple[AttackFigures, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def said(self) -> list[str]:
        """The sentences, for who reads the file alone."""
        return self.sentences()

    def sentences(self) -> list[str]:
        """One for each attack."""
        found = []
        for name in dict.fromkeys(result.attack for result in self.results):
            own = [result for result in self.results if result.attack == name]
            bare, noised = (
                max((result.auc for result in own if result.private is private), default=None)
                for private in (False, True)
            )
            told = [
                f"{area:.2f} {words}"
                for area, words in ((bare, "without noise"), (noised, "with it"))
                if area is not None
            ]
            found.append(f"{name}: AUC at most {', '.join(told)}; guesses have 0.50")
        return found
