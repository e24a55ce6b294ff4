"""What is known of a device, as a file: made on the device, read by whoever chooses a model for it."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import onnxruntime
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.core.files import write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.inference.device.latency_table import LatencyTable
from fedglm.inference.device.measurement import Progress, measure_latencies
from fedglm.inference.device.power import PowerMeter
from fedglm.inference.device.processor import Memory, Processor, read_memory, read_processor
from fedglm.inference.errors import InferenceError

MAX_BYTES: Final = 2**24


class DeviceFile(BaseModel):
    """A device: JSON, versioned.

    Attributes:
        version: Version of the file's layout.
        made: Date and time, ISO 8601, UTC.
        system: Operating system and its release.
        runtime: Version of ONNX Runtime.
        processor: The processor.
        memory: The memory.
        watts: Mean power of the processor packages while latencies were measured; None is "not measured".
        latency: Latencies of single operations.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    made: str = Field(max_length=40)
    system: str = Field(max_length=200)
    runtime: str = Field(max_length=40)
    processor: Processor
    memory: Memory
    watts: float | None = Field(ge=0, allow_inf_nan=False)
    latency: LatencyTable

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> DeviceFile:
        """Read a file that `save` wrote.

        Raises:
            InferenceError: There is none, or it is no device file of this version.
        """
        return cls.parse(read_device_file(path), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str) -> DeviceFile:
        """Parse the content of a file that `save` wrote; `name` is for the error.

        Raises:
            InferenceError: It is no device file of this version.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as exc:
            fault = exc.errors()[0]
            where = ".".join(map(str, fault["loc"])) or "it"
            raise InferenceError(f"{name} is no device file of version 1: {where}: {fault['msg']}"[:300]) from exc


def read_device_file(path: Path) -> bytes:
    """Read the bytes of a device file, whose hash tells it from others.

    Raises:
        InferenceError: There is none.
    """
    try:
        return read_regular(path, MAX_BYTES)
    except OSError as exc:
        raise InferenceError(f"{path}: {exc.strerror}; fedglm device probe --out {path} makes one") from exc


def probe_device(*, threads: int = 1, progress: Progress | None = None) -> DeviceFile:
    """Measure this machine.

    Args:
        threads: Number of threads of a model's run.
        progress: Called as latencies are measured.
    """
    processor, memory = read_processor(), read_memory()
    with PowerMeter() as meter:
        latency = measure_latencies(threads=threads, progress=progress)
    return DeviceFile(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        system=f"{platform.system()} {platform.release()}",
        runtime=onnxruntime.__version__,
        processor=processor,
        memory=memory,
        watts=meter.watts,
        latency=latency,
    )
