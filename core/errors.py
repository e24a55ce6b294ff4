"""Base class of all errors that a user can cause or fix; each is one line that names the cause and the remedy.

FedglmError
├── StorageError          core: a file cannot be written
│   └── DiskFullError     because the disk or quota is full
├── KilledError           core: a worker process was killed
├── CodecError            compression: a blob, a layout, a codec's name or option (a ValueError)
│   ├── MessageError      protocol: a message's fields
│   └── VersionMismatch   compression: the other end has other bits
├── InferenceError        inference: a model, a release or an input that cannot be used
│   ├── QueueFullError    more requests wait than a batcher holds
│   └── BatcherClosedError
├── DataError, ModelError, PrecisionError, TrainingError      autoglm
├── PrivacyError          privacy: a promise that cannot be made or kept
│   ├── Refusal           a rule of the node's policy forbids it
│   ├── LedgerError       a ledger that is damaged, rolled back or missing
│   ├── LogError          a signed log that is damaged, rolled back or missing
│   └── PolicyError       a policy that is malformed or not signed by the site
├── SiteError, StateError, ...                                client
├── ProjectError, FederationError, CheckpointError, ...       server
├── ScenarioError         scenarios: a key or a value
├── RunFolderError, ReportError                               run_folder
└── DaemonError           cli: a process that does not start or end
"""

from typing import ClassVar


class FedglmError(Exception):
    """An expected error; its message names the cause and the remedy.

    The command prints it as one line and exits with `exit_code`. Any other exception is a bug, and keeps its traceback.

    Attributes:
        exit_code: Exit code of the command that it ends.
    """

    exit_code: ClassVar[int] = 2
