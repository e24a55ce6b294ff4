"""A full disk, which a simulation's nodes share with its server."""

import errno
from unittest.mock import Mock

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedglm.client.app import DISK_FULL, NodeContext, build_client_app
from fedglm.compression.codec import CodecError
from fedglm.core.files import DiskFullError, StorageError
from fedglm.privacy.errors import LedgerError, Refusal
from fedglm.simulations.engines.shared_disk import SharedDiskGrid

FULL = OSError(errno.ENOSPC, "No space left on device")


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def failing_app(error: Exception, *, verbose_errors: bool) -> ClientApp:
    def resolve(_: Context) -> NodeContext:
        raise error

    return build_client_app(resolve, verbose_errors=verbose_errors)


def answer(app: ClientApp, message_type: str = "train") -> Message:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict(), dst_node_id=1, message_type=message_type, group_id="1")
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, Context(1, 1, {}, RecordDict(), {}))


def pull(reply: Message) -> list[Message]:
    return list(SharedDiskGrid(Mock(spec=Grid, pull_messages=Mock(return_value=[reply]))).pull_messages(["m"]))


@pytest.mark.parametrize(
    "error", [FULL, DiskFullError("cannot write /state"), raised_from(LedgerError("the ledger cannot be used"), FULL)]
)
def test_a_node_that_cannot_train_for_it_ends_the_run(error: Exception) -> None:
    reply = answer(failing_app(error, verbose_errors=True))
    assert (reply.error.code, reply.error.reason) == (DISK_FULL, str(error))
    with pytest.raises(DiskFullError) as caught:
        pull(reply)
    assert str(caught.value) == f"a node reports: {error}"
    grid = Mock(spec=Grid, send_and_receive=Mock(return_value=[reply]))
    with pytest.raises(DiskFullError):
        SharedDiskGrid(grid).send_and_receive([])


@pytest.mark.parametrize(
    "error", [StorageError("the disk is full"), LedgerError("the disk is full"), OSError(errno.EACCES, "no")]
)
def test_other_faults_cost_one_reply_whatever_their_words(error: Exception) -> None:
    reply = answer(failing_app(error, verbose_errors=True))
    assert reply.error.code == int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    assert pull(reply) == [reply]


@pytest.mark.parametrize("kind", ["query", "evaluate"])
def test_only_training_changes_the_result(kind: str) -> None:
    reply = answer(failing_app(FULL, verbose_errors=True), kind)
    assert reply.error.code == DISK_FULL
    assert pull(reply) == [reply]


@pytest.mark.parametrize(
    "error", [FULL, raised_from(CodecError("no"), FULL), raised_from(Refusal("rule x", "no"), FULL)]
)
def test_a_real_server_learns_nothing_of_a_site_s_disk(error: Exception) -> None:
    assert answer(failing_app(error, verbose_errors=False)).error.code != DISK_FULL


def test_all_else_is_the_grid_s() -> None:
    grid = Mock(spec=Grid)
    grid.get_node_ids.return_value = [7]
    shared = SharedDiskGrid(grid)
    assert [node.node_id for node in shared.get_nodes()] == [7]
    assert shared.run is grid.run
    assert shared.push_messages([]) is grid.push_messages.return_value
    shared.set_run(grid.run)
    grid.set_run.assert_called_once_with(grid.run)
    shared.create_message(RecordDict(), "train", 7, "1", 2.0)
    grid.create_message.assert_called_once()
