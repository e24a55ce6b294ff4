"""The root of every error that is ours: what a user can cause or mend, in one line that names the thing and the remedy.

FedglmError
├── StorageError          core: a file cannot be written
│   └── DiskFullError     for want of room
├── KilledError           core: a process that did a part of the work was killed
├── CodecError            compression: a blob, a layout, a codec's name or option (a ValueError)
│   ├── MessageError      protocol: a message's fields
│   └── VersionMismatch   compression: the other end holds other bits
├── DataError, ModelError, PrecisionError, TrainingError      autoglm
├── PrivacyError          privacy: a promise that cannot be made or kept
│   ├── Refusal           a rule of the node's policy forbids it
│   ├── LedgerError       a ledger that is damaged, rolled back or missing
│   ├── LogError          the same of a signed log
│   └── PolicyError       a policy that is malformed or not signed by the site
├── SiteError, StateError, ...                                client
├── ProjectError, FederationError, CheckpointError, ...       server
├── ScenarioError         scenarios: a key or a value
├── RunFolderError, ReportError                               run_folder
└── DaemonError           cli: a process that does not start or end
"""

from typing import ClassVar


class FedglmError(Exception):
    """What went wrong, and what helps.

    The command prints it as one line and ends with `exit_code`. Whatever is none of these is a bug, and keeps its
    traceback.

    Attributes:
        exit_code: Of the command that it ends.
    """

    exit_code: ClassVar[int] = 2
