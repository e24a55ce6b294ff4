"""The disk that a simulation's nodes share with its server: a full disk ends the run, whoever notices it."""

from collections.abc import Iterable

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedglm.client.app import DISK_FULL
from fedglm.core.files import DiskFullError


class SharedDiskGrid(Grid):
    """A grid that raises where a node could not train because the disk is full.

    Continuing without such a node would change the result; resuming once there is room does not.

    Args:
        grid: Grid of the nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; Flower prefers the constructor of `Message`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that are connected."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived.

        Raises:
            DiskFullError: A node reports that the disk is full.
        """
        return [_check_disk(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and wait for the replies; raises as `pull_messages`."""
        return [_check_disk(reply) for reply in self._grid.send_and_receive(messages, timeout=timeout)]


def _check_disk(reply: Message) -> Message:
    if reply.has_error() and reply.error.code == DISK_FULL and reply.metadata.message_type == MessageType.TRAIN:
        raise DiskFullError(f"a node reports: {reply.error.reason}")
    return reply
