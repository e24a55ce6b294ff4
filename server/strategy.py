"""Compression for any Flower strategy: a wrapper that decodes the updates coded by `compress_uplink`.

    from fedglm.server.strategy import Compressed
    strategy = Compressed(FedAdam(...))

For strategies that take a weighted mean (`FedAvg` and those built on it) the sparse updates are summed into one dense
vector, and the strategy gets their mean. The others (Krum, median, trimmed mean, ...) need the single models, so each
update is decoded to a dense model first.
"""

import secrets
from collections.abc import Iterable
from logging import INFO
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Strategy,
)
from flwr.supercore import log

from fedglm.compression.arrays import flatten, float_layout, unflatten
from fedglm.compression.codec import CodecError, Update, decode
from fedglm.compression.layout import Layout
from fedglm.protocol.messages import RECORD, UPDATE_STYPE, ModRequest
from fedglm.server.aggregation.fixed_point import compute_public_weights
from fedglm.server.aggregation.robust import compute_limits
from fedglm.server.strategy_replies import average_buffers, check_array, get_metrics, reject, split_by_form

MEANS = (FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad, FedYogi)
"""Strategies that need only the weighted mean of the models. A subclass may need more, so the type must be exact."""

_WEIGHT_CAP = 10.0
"""Maximum ratio of two weights where they are bounded."""


class Compressed(Strategy):
    """Wrapper of any strategy, for nodes that send coded updates.

    A reply whose metrics differ from the others', or whose weight is no number above 0, counts as a failure of its
    node; Flower itself would end the run.

    Args:
        strategy: Strategy to wrap; it sees ordinary dense models.
        clip_factor: Maximum norm of an update, and maximum magnitude in it, over the median of the round's updates, at
            least 1; larger ones are scaled down, so that one node of three or more cannot determine the model. Where
            the strategy takes a weighted mean, weights are also limited to a ratio of 10 around their median. None
            bounds nothing, as Flower does.

    Attributes:
        uplink_bytes: Bytes of the arrays received so far, coded and uncoded.
        dense_uplink_bytes: Bytes that the same arrays would have had uncoded.

    Raises:
        ValueError: `clip_factor` is below 1.
    """

    def __init__(self, strategy: Strategy, *, clip_factor: float | None = None) -> None:
        if clip_factor is not None and not clip_factor >= 1:
            raise ValueError(f"clip_factor is a number from 1, not {clip_factor!r}")
        self._inner, self._clip_factor = strategy, clip_factor
        self._base: dict[str, np.ndarray] = {}
        self._layout: Layout | None = None
        self._run, self._round = "", 0
        self._acknowledged: dict[int, int] = {}
        self.uplink_bytes = 0
        self.dense_uplink_bytes = 0

    def summary(self) -> None:
        """Log the wrapped strategy's summary."""
        log(INFO, "\t├──> Compressed uplink around %s", type(self._inner).__name__)
        self._inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy configure the round, and add to each message which of the node's updates was used last."""
        if not self._run or server_round <= self._round:
            # A new run: residuals that nodes keep from another run must not be used.
            self._run, self._acknowledged = secrets.token_hex(8), {}
        self._round = server_round
        self._base = {name: array.numpy() for name, array in arrays.items()}
        self._layout = float_layout(self._base)
        messages = []
        for message in self._inner.configure_train(server_round, arrays, config, grid):
            acknowledged = self._acknowledged.get(message.metadata.dst_node_id, 0)
            request = ModRequest(run=self._run, round=server_round, acknowledged=acknowledged)
            message.content = RecordDict({**message.content, RECORD: ConfigRecord(dict(request.to_fields()))})
            messages.append(message)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode each reply and aggregate; a malformed reply becomes an error reply, which counts as a failure."""
        good: list[tuple[Message, Update]] = []
        failed: list[Message] = []
        for reply in replies:
            if reply.has_error():
                failed.append(reply)
                continue
            try:
                good.append((reply, self._decode(reply)))
            except CodecError as exc:
                failed.append(reject(reply, str(exc)))
        if isinstance(self._inner, FedAvg):
            good, differing = split_by_form(good, self._inner.weighted_by_key)
            failed += differing
        good = self._clip(good)
        if type(self._inner) in MEANS and good:
            arrays, metrics = self._aggregate_mean(server_round, cast(FedAvg, self._inner), good, failed)
        else:
            arrays, metrics = self._aggregate_dense(server_round, good, failed)
        if arrays is not None:
            # Only now: a node whose update was not aggregated must keep its old residual.
            self._acknowledged |= {reply.metadata.src_node_id: server_round for reply, _ in good}
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Delegate to the wrapped strategy."""
        return self._inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Delegate to the wrapped strategy."""
        return self._inner.aggregate_evaluate(server_round, replies)

    def _decode(self, reply: Message) -> Update:
        """Decode the update of a reply and check it against the model that was sent.

        Raises:
            CodecError: The reply is malformed; the message gives the reason.
        """
        if self._layout is None:
            raise CodecError("a reply came before the first round was configured")
        records = list(reply.content.array_records.values())
        if len(records) != 1 or RECORD not in records[0]:
            raise CodecError(
                "the reply holds no coded update: does the node's ClientApp have mods=[compress_uplink()]?"
            )
        buffers = set(records[0]) - {RECORD}
        expected = set(self._base) - set(self._layout.names)
        if buffers != expected:
            raise CodecError(f"the reply lacks or adds arrays: {', '.join(sorted(buffers ^ expected))}")
        for name in sorted(buffers):
            check_array(name, records[0][name], self._base[name])
        coded = records[0][RECORD]
        if coded.stype != UPDATE_STYPE:
            raise CodecError(f"a coded update of type {UPDATE_STYPE!r} expected, found {coded.stype[:50]!r}")
        update = decode(coded.data, size=self._layout.size)
        if not np.isfinite(update.norm()):
            raise CodecError("the update holds a value that is not finite")
        self.uplink_bytes += sum(len(array.data) for array in records[0].values())
        self.dense_uplink_bytes += sum(array.nbytes for array in self._base.values())
        return update

    def _clip(self, good: list[tuple[Message, Update]]) -> list[tuple[Message, Update]]:
        if self._clip_factor is None:
            return good
        updates = [update for _, update in good]
        limits = compute_limits([u.norm() for u in updates], [u.max_abs() for u in updates], self._clip_factor)
        return good if limits is None else [(reply, limits.clip(update)) for reply, update in good]

    def _aggregate_mean(
        self, server_round: int, inner: FedAvg, good: list[tuple[Message, Update]], failed: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sum the sparse updates, and give the strategy one reply that is their weighted mean."""
        contents = [reply.content for reply, _ in good]
        try:
            weights = [float(cast(float, get_metrics(c)[inner.weighted_by_key])) for c in contents]
        except (KeyError, TypeError, ValueError):
            # The strategy itself reports best what its replies must hold.
            return self._aggregate_dense(server_round, good, failed)
        if self._clip_factor is not None:
            by_index = {str(index): weight for index, weight in enumerate(weights)}
            weights = list(compute_public_weights(by_index, _WEIGHT_CAP).values())
        total = sum(weights)
        mean = np.zeros(cast(Layout, self._layout).size, dtype=np.float64)
        for (_, update), weight in zip(good, weights, strict=True):
            update.add_to(mean, weight / total)
        metrics = inner.train_metrics_aggr_fn(contents, inner.weighted_by_key)
        mean_reply = good[0][0]
        buffers = average_buffers(contents, [weight / total for weight in weights])
        self._replace(mean_reply, mean)
        (record,) = mean_reply.content.array_records.values()
        record.update(buffers)
        arrays, _ = inner.aggregate_train(server_round, [mean_reply, *failed])
        return self._restore_dtypes(arrays), metrics

    def _aggregate_dense(
        self, server_round: int, good: list[tuple[Message, Update]], failed: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Give the strategy a dense model for each reply."""
        for reply, update in good:
            self._replace(reply, update.to_dense())
        arrays, metrics = self._inner.aggregate_train(server_round, [reply for reply, _ in good] + failed)
        return self._restore_dtypes(arrays), metrics

    def _restore_dtypes(self, arrays: ArrayRecord | None) -> ArrayRecord | None:
        """Return the strategy's model with the dtypes of the model that was sent.

        Strategies average integer buffers to floats, which would become part of the coded vector in the next round.
        """
        if arrays is None:
            return None
        for name, array in arrays.items():
            values, dtype = array.numpy(), self._base[name].dtype
            if values.dtype != dtype:
                to_integers = np.issubdtype(values.dtype, np.floating) and not np.issubdtype(dtype, np.floating)
                arrays[name] = Array(np.asarray((np.rint(values) if to_integers else values).astype(dtype)))
        return arrays

    def _replace(self, reply: Message, update: np.ndarray) -> None:
        """Replace the coded array of a reply by the dense model: the model that was sent plus `update`."""
        layout = cast(Layout, self._layout)
        model = unflatten(flatten(self._base, layout) + update, layout, self._base)
        (record,) = reply.content.array_records.values()
        arrays = {name: Array(model[name]) if name in model else record[name] for name in self._base}
        record.clear()
        record.update(arrays)
