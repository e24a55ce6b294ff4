"""A run as it lies in a project's folder: all that the server's process needs to begin it or to go on with it.

    runs/NAME/run.json      settings, layout, what nodes are told
    runs/NAME/initial.f32   version 0, little-endian float32
    runs/NAME/reference.safetensors   records that updates are measured on, where there are any
    runs/NAME/checkpoint/   from which a killed server goes on
    runs/NAME/rounds.jsonl  one object a round
    runs/NAME/events.jsonl  who was asked, who answered, who was turned away, each with its time
    runs/NAME/done.json     the result, once the last round is through
    runs/NAME/failed.json   why the run cannot go on

The process that serves a run needs no torch: the model was made where the run was prepared.
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
from fedglm.server.errors import ProjectError
from fedglm.server.run_setup import Plan
from fedglm.server.settings import ClientPrivacySettings, FederationSettings, ServerOptimizerSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunFile(BaseModel):
    """`run.json`, where the fields of `spec` stand on one level with the others.

    Attributes:
        federation: Rounds and participation.
        optimizer: Server optimizer and the schedule of the nodes' learning rate.
        spec: What nodes hold the server to.
        downlink: Codec towards the nodes.
        client_privacy: Noise of the server's on updates of whole nodes.
        learning_rate: The nodes' learning rate before the schedule.
        names: Names of the layout's tensors.
        shapes: Shapes of the layout's tensors.
        initial_sha256: SHA-256 (hex) of the bytes of `initial.f32`.
        reference_sha256: SHA-256 (hex) of the bytes of `reference.safetensors`; None for a run without reference
            records.
        metric: `accuracy` or `perplexity`.
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

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        """Read the spec's fields, which the file has beside the others; `rounds` are the federation's."""
        if not isinstance(tree, dict) or "spec" in tree:
            return tree
        federation = tree.get("federation")
        rounds = federation.get("rounds") if isinstance(federation, dict) else None
        spec = {name: value for name, value in tree.items() if name in FIELDS} | {"rounds": rounds}
        others = {name: value for name, value in tree.items() if name not in FIELDS}
        return others | {"spec": RunSpec.from_fields(spec)}

    @model_serializer(mode="wrap")
    def _spread(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        del tree["spec"]
        return tree | {name: value for name, value in self.spec.to_fields().items() if name != "rounds"}

    def save(self, folder: Path, initial: np.ndarray) -> None:
        """Write both files, the vector first.

        Raises:
            StorageError: They cannot be written.
        """
        write_atomically(folder / INITIAL, initial.astype("<f4", copy=False).tobytes())
        write_atomically(folder / RUN, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `run.json`.

        Raises:
            ProjectError: There is none, or it is damaged.
        """
        try:
            return cls.model_validate_json((folder / RUN).read_text())
        except (OSError, UnicodeDecodeError, ValidationError, PrivacyError) as exc:
            raise ProjectError(
                f"{folder} holds no run that can be read ({type(exc).__name__}): start a new one"
            ) from exc

    def plan(self, folder: Path, *, key: SigningKey, sites: dict[str, PublicKey]) -> Plan:
        """The run, as the coordinator takes it.

        Args:
            folder: The run's.
            key: Signs the plan.
            sites: Enrolled sites and their keys.

        Raises:
            ProjectError: The vector is missing or not the one that was written.
        """
        layout = Layout(self.names, self.shapes)
        content = read_kept(folder / INITIAL, self.initial_sha256)
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
        )


def read_kept(path: Path, sha256: str) -> bytes:
    """A file of a run's folder, if it is the one that was written when the run was prepared.

    Raises:
        ProjectError: It is missing or another.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ProjectError(f"{path.parent} lacks {path.name}: start a new run") from exc
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ProjectError(f"{path} is damaged: start a new run")
    return content


def checked_run_name(name: str) -> str:
    """The name, if it can name a run's folder.

    Raises:
        ProjectError: It cannot.
    """
    if not _NAME.fullmatch(name):
        raise ProjectError(f"a run's name has 1 to 100 letters, digits, dots, dashes or underscores, not {name[:80]!r}")
    return name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no file, and a last line that is cut is left out."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def write_failure(folder: Path, error: str, reason: str, *, final: bool) -> None:
    """Write `failed.json`.

    Args:
        folder: The run's.
        error: Kind of what happened.
        reason: For people.
        final: Trying again would end the same way.
    """
    said = {"error": error, "reason": " ".join(reason.split())[:1000], "final": final}
    write_atomically(folder / FAILED, json.dumps(said) + "\n")
