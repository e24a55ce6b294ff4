"""A run in a project's folder: everything that the server's process needs to begin or resume it.

    runs/NAME/run.json      settings, layout, specification of the run for its nodes
    runs/NAME/initial.f32   version 0, little-endian float32
    runs/NAME/reference.safetensors   reference records that updates are evaluated on, where there are any
    runs/NAME/evaluation.safetensors  held-out records that each round's model is evaluated on, where there are any
    runs/NAME/light/        light release of the model, where one was asked for and made
    runs/NAME/light-validations/VERSION/SITE.json   how it works at a site, where the site's policy permits to say so
    runs/NAME/checkpoint/   checkpoints from which a killed server resumes
    runs/NAME/rounds.jsonl  one object per round
    runs/NAME/events.jsonl  sampled, accepted and rejected nodes, each with its time
    runs/NAME/done.json     the result, after the last round
    runs/NAME/failed.json   why the run has failed

The process that serves a run needs no torch, unless it makes light releases: the model was built where the run was
prepared.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fedglm.compression.layout import Layout
from fedglm.compression.settings import DownlinkSettings
from fedglm.core.files import write_atomically
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy.run_spec import FIELDS, RunSpec
from fedglm.run_folder.names import AUDIT, CHECKPOINTS, FAILED, INITIAL, RUN
from fedglm.server.aggregation.central_dp import plan_client_privacy
from fedglm.server.deployment.run_light import LightRun
from fedglm.server.errors import ProjectError
from fedglm.server.run_setup import Plan
from fedglm.server.settings import ClientPrivacySettings, FederationSettings, ServerOptimizerSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunFile(BaseModel):
    """Content of `run.json`, in which the fields of `spec` are beside the others, not nested.

    Attributes:
        federation: Rounds and participation.
        optimizer: Server optimizer and the schedule of the nodes' learning rate.
        spec: Specification of the run, which nodes enforce.
        downlink: Codec of the downlink.
        client_privacy: Client-level DP: noise that the server adds.
        learning_rate: Learning rate of the nodes before the schedule.
        names: Names of the layout's tensors.
        shapes: Shapes of the layout's tensors.
        initial_sha256: SHA-256 (hex) of the bytes of `initial.f32`.
        reference_sha256: SHA-256 (hex) of the bytes of `reference.safetensors`; None for a run without reference
            records.
        evaluation_sha256: SHA-256 (hex) of the bytes of `evaluation.safetensors`; None for a run without held-out
            records at the server.
        metric: Name of the metric, `accuracy` or `perplexity`.
        light: What light releases of the model are made of; None for a run that makes none.
        guarantee: Epsilon and delta of each unit at a site in the whole run; None without differential privacy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    federation: FederationSettings
    optimizer: ServerOptimizerSettings
    spec: RunSpec
    downlink: DownlinkSettings
    client_privacy: ClientPrivacySettings
    learning_rate: float
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    initial_sha256: str
    reference_sha256: str | None
    metric: str
    evaluation_sha256: str | None = None
    light: LightRun | None = None
    guarantee: tuple[float, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nest_spec(cls, tree: Any) -> Any:
        """Collect the fields of `spec`, which the file has beside the others; `rounds` are the federation's."""
        if not isinstance(tree, dict) or "spec" in tree:
            return tree
        federation = tree.get("federation")
        rounds = federation.get("rounds") if isinstance(federation, dict) else None
        spec = {name: value for name, value in tree.items() if name in FIELDS} | {"rounds": rounds}
        others = {name: value for name, value in tree.items() if name not in FIELDS}
        return others | {"spec": RunSpec.from_fields(spec)}

    @model_serializer(mode="wrap")
    def _flatten_spec(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        del tree["spec"]
        return tree | {name: value for name, value in self.spec.to_fields().items() if name != "rounds"}

    def save(self, folder: Path, initial: np.ndarray) -> None:
        """Write the initial vector, then `run.json`.

        Args:
            folder: Folder of the run.
            initial: Master vector of version 0, float32.

        Raises:
            StorageError: A file cannot be written.
        """
        write_atomically(folder / INITIAL, initial.astype("<f4", copy=False).tobytes())
        write_atomically(folder / RUN, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `run.json`.

        Raises:
            ProjectError: The file is missing or damaged.
        """
        try:
            return cls.model_validate_json((folder / RUN).read_text())
        except (OSError, UnicodeDecodeError, ValidationError, PrivacyError) as exc:
            raise ProjectError(
                f"{folder} holds no run that can be read ({type(exc).__name__}): start a new one"
            ) from exc

    def plan(self, folder: Path, *, key: SigningKey, sites: dict[str, PublicKey]) -> Plan:
        """Make the coordinator's plan of the run.

        Args:
            folder: Folder of the run.
            key: Private key that signs the plan.
            sites: Public keys of the enrolled sites, by name.

        Raises:
            ProjectError: The initial vector is missing, or not the one that was written.
        """
        layout = Layout(self.names, self.shapes)
        content = read_verified(folder / INITIAL, self.initial_sha256)
        if len(content) != 4 * layout.size:
            raise ProjectError(f"{folder / INITIAL} is damaged: start a new run")
        return Plan(
            federation=self.federation,
            optimizer=self.optimizer,
            spec=self.spec,
            key=key,
            downlink=self.downlink,
            learning_rate=self.learning_rate,
            layout=layout,
            initial=np.frombuffer(content, "<f4").astype(np.float32),
            evaluate=None,
            metric=self.metric,
            checkpoints=folder / CHECKPOINTS,
            log=folder / AUDIT / LOG,
            client_privacy=plan_client_privacy(self.client_privacy, self.federation, len(sites)),
            sites=sites,
            gives_model=True,
            guarantee=self.guarantee,
            light_every=None if self.light is None else self.light.model.light_every,
        )


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file of a run's folder, and verify that its content is what was written when the run was prepared.

    Args:
        path: The file.
        sha256: SHA-256 (hex) of its content.

    Raises:
        ProjectError: The file is missing, or its content differs.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ProjectError(f"{path.parent} lacks {path.name}: start a new run") from exc
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ProjectError(f"{path} is damaged: start a new run")
    return content


def check_run_name(name: str) -> str:
    """Check that the name can be the name of a run's folder; return it.

    Raises:
        ProjectError: The name is invalid.
    """
    if not _NAME.fullmatch(name):
        raise ProjectError(f"a run's name has 1 to 100 letters, digits, dots, dashes or underscores, not {name[:80]!r}")
    return name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON lines file, without an incomplete last line; none where there is no file."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def write_failure(folder: Path, error: str, reason: str, *, final: bool) -> None:
    """Write `failed.json`.

    Args:
        folder: Folder of the run.
        error: Name of the error's type.
        reason: Reason, for people; cut to 1000 characters.
        final: Whether another attempt would fail in the same way.
    """
    failure = {"error": error, "reason": " ".join(reason.split())[:1000], "final": final}
    write_atomically(folder / FAILED, json.dumps(failure) + "\n")
