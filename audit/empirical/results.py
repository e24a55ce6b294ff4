"""Files in a run's `audit/` with the results of empirical audits, and how they are read back without trust.

Whether an audit was passed is computed from its figures, whatever the file says. A reader must ask whether it was made
with the run's own code and model: `matches`.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.core.validation_errors import locate_first_error
from fedglm.privacy.policy.run_plan import RunPlan
from fedglm.run_folder.record import ReportError

CANARIES, ATTACK = "canaries.json", "attack.json"
"""Names of the files in a run's `audit/`."""

TRIALS: Final = (
    *("contribution of a record", "contribution of a unit", "records of a unit", "independence of records"),
    *("a broken record", "noise, nobody drawn", "noise, all drawn", "fresh noise", "sampling"),
)
"""Names of the trials, all of which an audit must have to be passed: see `audit.empirical.trials.TRIALS`."""

_MAX_BYTES: Final = 64 * 2**20

_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Auc = Annotated[float, Field(ge=0, le=1)]


class _Figures(BaseModel):
    """Base of all parts of the files. Computed fields are in a file for people, and ignored when it is read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, serialize_by_alias=True)


class _AuditFile(_Figures):
    """Fields of both files.

    Attributes:
        code: SHA-256 (hex) of the code that was audited.
        model: SHA-256 (hex) of the weights that it started from.
        made: Time of the audit: UTC, ISO 8601 to the second.
        records: Whether it was made with the run's own records, or with stand-ins because those are at the sites.
        precision: Format and device that it was computed in; nodes elsewhere may have chosen another.
        left_out: Descriptions of what could not be tried, and why.
    """

    code: _SHA256
    model: _SHA256
    made: str
    records: Literal["run", "stand-in"]
    precision: str = "unknown"
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a file that `write` wrote.

        Args:
            path: Path of the file.

        Returns:
            The result; None if there is no such file.

        Raises:
            ReportError: The file is damaged.
        """
        try:
            return cls.model_validate_json(read_regular(path, _MAX_BYTES))
        except FileNotFoundError:
            return None
        except ValidationError as exc:
            place = locate_first_error(exc) or "its beginning"
            raise ReportError(f"{path} is damaged at {place}: audit again") from exc
        except OSError as exc:
            raise ReportError(f"{path} cannot be read: {exc.strerror}") from exc

    def write(self, path: Path) -> None:
        """Write the result atomically.

        Raises:
            StorageError: It cannot be written.
        """
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    def matches(self, plan: RunPlan | None) -> bool:
        """Return whether the audit was made with the code and the starting weights of that run."""
        return plan is not None and (self.code, self.model) == (plan.code, plan.model)


class CanaryFigures(_Figures):
    """Figures of the canaries of one kind: see `audit.empirical.canaries.CanaryResult`."""

    kind: Literal["gradients", "records"]
    canaries: Annotated[int, Field(ge=1)]
    claimed: Annotated[float, Field(ge=0, le=2.1)]  # 2 is the largest claim; the accountants are within 0.02
    delta: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)]
    one_run: _NonNegative
    f_dp: _NonNegative
    estimate: _NonNegative
    estimate_least: _NonNegative

    @computed_field  # type: ignore[prop-decorator]
    @property
    def bound(self) -> float:
        """The larger of the rigorous bounds."""
        return max(self.one_run, self.f_dp)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def contradicts(self) -> bool:
        """Whether the claim is wrong, up to the confidence."""
        return self.bound > self.claimed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def doubts(self) -> bool:
        """Whether the estimate is above the claim, which proves nothing."""
        return self.estimate_least > self.claimed


class Trial(_Figures):
    """Result of a trial: see `audit.empirical.trials.TrialResult`."""

    name: str
    outcome: Literal["passed", "failed", "not made"]
    detail: str = Field(alias="said")


class CanaryAudit(_AuditFile):
    """`canaries.json`: the results of each kind of canary, and of each trial of the training code."""

    canaries: Annotated[tuple[CanaryFigures, ...], Field(min_length=1)]
    trials: Annotated[tuple[Trial, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim, and each of `TRIALS` was made and passed."""
        all_made = {trial.name for trial in self.trials} >= set(TRIALS)
        all_passed = all_made and all(trial.outcome == "passed" for trial in self.trials)
        return all_passed and not any(kind.contradicts for kind in self.canaries)


class AttackFigures(_Figures):
    """Figures of one attack on one variant of the update.

    Attributes:
        attack: Name of the attack.
        variant: Name of the variant.
        private: Whether the update has noise.
        coded: Whether the update is compressed.
        auc: Area under the ROC curve, 0.5 for guesses.
        low: Lower end of its 95 % confidence interval.
        high: Upper end of the interval.
    """

    attack: str
    variant: str
    private: bool
    coded: bool
    auc: _Auc
    low: _Auc
    high: _Auc


class AttackAudit(_AuditFile):
    """`attack.json`: the results of each attack on each variant.

    Attributes:
        epsilon: Epsilon that the noise of the private variants has over the whole run.
        round_epsilon: Epsilon that the one attacked round spends of it.
        delta: Delta of both.
        results: Figures of each attack on each variant.
    """

    epsilon: Annotated[float, Field(gt=0)]
    round_epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    results: Annotated[tuple[AttackFigures, ...], Field(min_length=1)]

    @computed_field(alias="said")  # type: ignore[prop-decorator]
    @property
    def sentences(self) -> list[str]:
        """One sentence for each attack, in the file for readers who have only that."""
        sentences = []
        for name in dict.fromkeys(result.attack for result in self.results):
            own = [result for result in self.results if result.attack == name]
            unnoised, noised = (
                max((result.auc for result in own if result.private is private), default=None)
                for private in (False, True)
            )
            areas = [
                f"{area:.2f} {words}"
                for area, words in ((unnoised, "without noise"), (noised, "with it"))
                if area is not None
            ]
            sentences.append(f"{name}: AUC at most {', '.join(areas)}; guesses have 0.50")
        return sentences
