"""The values that a node and its outbound gate exchange: what the gate authorizes, and what the node has made."""

from collections.abc import Callable
from dataclasses import dataclass

from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.protocol.messages import TrainReply


@dataclass(frozen=True)
class Authorization:
    """Authorization of a node, by the outbound gate, to answer a request.

    Attributes:
        mechanism: Mechanism that adds noise to the update; None for no noise.
        metrics_mechanism: Mechanism that adds noise to the metrics of the received model; None for no noise.
        declared_units: Number of units that the site declares publicly; noised sums are divided by it.
        check_budget: Raises `Refusal` when the ledger has too little budget left for a new answer.
        has_charged: Returns whether the ledger was charged for the update of an attempt, given its id. Only such an
            update can have left.
        model: SHA-256 (hex) of the weights that the run starts from; None where no plan names them.
        commitment: Commitment to the site's data set, as in the ledger; empty where nobody keeps a ledger.
    """

    mechanism: Mechanism | None
    metrics_mechanism: Mechanism | None
    declared_units: int
    check_budget: Callable[[], None]
    has_charged: Callable[[str], bool]
    model: str | None = None
    commitment: str = ""


@dataclass(frozen=True)
class NodeResult:
    """A node's result for a request, before the outbound gate has checked it.

    Attributes:
        reply: Fields of the reply.
        blob: Coded update, or None.
        evaluation: Evaluation of the *received* model on held-out data, or None.
        noise: Mechanism that noised the update; None for no noise.
        evaluation_noise: Mechanism that noised the evaluation; None for no noise.
        attempt: Id of the attempt that used records; None where none were used.
        purposes: Purposes of the attempt: see `privacy.log.entries.PURPOSES`.
        failure: Why the attempt failed, for the site's own log; None where it succeeded.
    """

    reply: TrainReply
    blob: bytes | None = None
    evaluation: Evaluation | None = None
    noise: Mechanism | None = None
    evaluation_noise: Mechanism | None = None
    attempt: str | None = None
    purposes: tuple[str, ...] = ()
    failure: Exception | None = None
