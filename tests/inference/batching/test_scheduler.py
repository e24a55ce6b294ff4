"""The scheduler in virtual time: whatever comes and whatever the table says, what it promises holds."""

import heapq
from dataclasses import dataclass

import pytest
from fake_sessions import FakeCosts
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.batching.costs import CostTable
from fedglm.inference.batching.scheduler import MIN_SPEEDUP, Scheduler

DEADLINE_S = 0.005
CONCAVE = CostTable({(1, 1): 1.0, (2, 1): 1.1, (4, 1): 1.3, (8, 1): 1.6, (16, 1): 3.4})
PEAK_AT_4 = CostTable({(1, 1): 1.0, (2, 1): 1.8, (4, 1): 3.0, (8, 1): 11.0})
NEVER = CostTable({(1, 1): 1.0, (2, 1): 2.0, (8, 1): 12.0})


@dataclass(frozen=True, eq=False)
class Item:
    arrived: float
    tokens: int = 1
    group: int = 0


def scheduler(costs, max_batch=16):
    return Scheduler(costs, deadline_s=DEADLINE_S, max_batch=max_batch)


tables = st.builds(
    lambda *times: CostTable(dict(zip(((b, t) for t in (1, 32) for b in (1, 2, 4, 8)), times, strict=True))),
    *[st.floats(0.05, 20)] * 8,
)
arrivals = st.lists(st.tuples(st.floats(0, 0.05), st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=40)


def simulate(costs, items, max_batch=16, ask_again=None):
    """Serve arrivals, and what their senders ask again; a list of (start, batch, when the session became idle)."""
    plans, waiting, served, now, idle_since = scheduler(costs, max_batch), [], [], 0.0, 0.0
    coming = [(item.arrived, number, item) for number, item in enumerate(items)]
    heapq.heapify(coming)
    while coming or waiting:
        while coming and coming[0][0] <= now:
            waiting.append(heapq.heappop(coming)[2])
        plan = plans.plan(waiting) if waiting else None
        if plan is None or plan.due > now:
            now = min([time for time, *_ in coming[:1]] + ([plan.due] if plan else []))
            continue
        served.append((now, plan.batch, idle_since))
        waiting = [item for item in waiting if item not in plan.batch]
        now += costs.milliseconds(len(plan.batch), max(item.tokens for item in plan.batch)) / 1000
        while coming and coming[0][0] <= now:
            waiting.append(heapq.heappop(coming)[2])
        plans.expect(len(plan.batch) + len(waiting))
        idle_since = now
        for item in ask_again(now, plan.batch) if ask_again else ():
            heapq.heappush(coming, (item.arrived, id(item), item))
    return served


@given(tables, arrivals, st.integers(1, 16))
def test_no_batch_is_slower_than_singles_and_each_request_is_served_once(costs, rows, max_batch):
    items = [Item(*row) for row in rows]
    served = simulate(costs, items, max_batch)
    assert sorted(map(id, items)) == sorted(id(item) for _, batch, _ in served for item in batch)
    for _, batch, _ in served:
        assert len(batch) <= max_batch
        assert len({item.group for item in batch}) == 1
        alone = sum(costs.milliseconds(1, item.tokens) for item in batch)
        together = costs.milliseconds(len(batch), max(item.tokens for item in batch))
        assert len(batch) == 1 or alone >= MIN_SPEEDUP * together


@given(tables, arrivals)
def test_an_idle_session_holds_no_request_beyond_the_deadline(costs, rows):
    items = [Item(*row) for row in rows]
    left = {id(item): item for item in items}
    for start, batch, idle_since in simulate(costs, items):
        oldest = min((item for item in left.values() if item.arrived <= start), key=lambda item: item.arrived)
        assert any(item.arrived == oldest.arrived for item in batch), "the oldest is in every batch"
        assert start <= max(oldest.arrived + DEADLINE_S, idle_since) + 1e-12
        for item in batch:
            del left[id(item)]


@given(tables, st.lists(st.floats(0, 0.05), min_size=1, max_size=30))
def test_waiting_costs_at_most_what_it_could_have_saved(costs, times):
    # For each batch, the idle time before it is no longer than a single run for each request that was waited for.
    items = [Item(time) for time in times]
    for start, batch, idle_since in simulate(costs, items):
        idle = start - max(idle_since, min(item.arrived for item in batch))
        assert idle * 1000 <= len(batch) * costs.milliseconds(1, 1) + 1e-9


THINK_S = 20e-6


def ask_again(now, batch):
    """Senders of a batch ask again one after the other, for a second."""
    return [Item(now + THINK_S * (place + 1)) for place in range(len(batch))] if now < 1 else []


def throughput(costs, clients):
    """Answers a second of clients that ask again, against one without a batcher."""
    served = simulate(costs, [Item(THINK_S * (client + 1)) for client in range(clients)], ask_again=ask_again)
    seconds = served[-1][0]
    singly = 1 / (THINK_S + costs.milliseconds(1, 1) / 1000)
    return sum(len(batch) for _, batch, _ in served) / seconds / singly


def test_eight_clients_gain_what_the_table_offers():
    offered = 8 * 1.0 / 1.6
    assert throughput(CONCAVE, 8) >= 0.85 * offered  # eight think-times of 20 us are 10 % of the batch of 1.6 ms


@pytest.mark.parametrize("clients", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("costs", [CONCAVE, PEAK_AT_4, NEVER], ids=["concave", "peak at 4", "never"])
def test_no_number_of_clients_is_served_slower_than_by_singles(costs, clients):
    assert throughput(costs, clients) >= 0.95


@pytest.mark.parametrize("clients", [1, 3, 8])
def test_no_client_waits_longer_than_the_deadline_and_two_batches(clients):
    # As many clients as a batch takes: one batch may be running, and the next is one's own.
    served = simulate(CONCAVE, [Item(THINK_S * (n + 1)) for n in range(clients)], ask_again=ask_again)
    ends = [(start + CONCAVE.milliseconds(len(batch), 1) / 1000, batch) for start, batch, _ in served]
    longest = max(end - item.arrived for end, batch in ends for item in batch)
    assert longest <= DEADLINE_S + 2 * CONCAVE.milliseconds(clients, 1) / 1000


def test_a_lone_client_is_never_held():
    plans = scheduler(CONCAVE)
    assert not plans.expects_others
    for time in (0.0, 1.0, 1.001, 7.0):
        assert plans.plan([Item(time)]).due <= time
        plans.expect(1)


def test_a_session_waits_for_those_it_just_answered_and_not_once_they_are_gone():
    plans = scheduler(CONCAVE)
    plans.expect(8)
    held = plans.plan([Item(1.0)])
    assert 1.0 < held.due <= 1.0 + 0.001  # what a second one would save: 1 + 1 - 1.1 ms
    assert plans.plan([Item(1.0 + i * 1e-4) for i in range(8)]).due <= 1.0008
    plans.expect(1)
    assert plans.plan([Item(2.0)]).due <= 2.0


def test_the_deadline_bounds_the_wait_however_much_it_would_save():
    plans = scheduler(FakeCosts(fixed=100, each=0.1))
    plans.expect(16)
    waiting = [Item(1.0), Item(1.004)]
    assert plans.plan(waiting).due == pytest.approx(1.0 + DEADLINE_S)


def test_the_batch_is_what_the_table_calls_fastest():
    assert len(scheduler(PEAK_AT_4).plan([Item(0.0)] * 8).batch) == 4
    assert len(scheduler(NEVER).plan([Item(0.0)] * 8).batch) == 1
    assert len(scheduler(CONCAVE).plan([Item(0.0)] * 30).batch) == 8  # 16 in 3.4 ms are fewer a second than 8 in 1.6
    assert len(scheduler(CONCAVE, max_batch=3).plan([Item(0.0)] * 30).batch) == 3


def test_requests_of_like_length_share_a_run():
    items = [Item(0.0, tokens) for tokens in (30, 2, 31, 200, 29, 3)]
    plan = scheduler(FakeCosts(fixed=5, each=0.2)).plan(items)
    assert sorted(item.tokens for item in plan.batch) == [29, 30, 31]
    assert plan.batch[0] is items[0]
