"""Whom a round asks, and when it closes, by a clock that nobody waits for."""

import pytest
from virtual_clock import VirtualClock

from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.rounds.pacing import SynchronousPacing
from fedglm.server.rounds.participants import FederationError, Participant, Participants
from fedglm.server.settings import FederationSettings


def nodes(count):
    return Participants([Participant(name=f"node-{index:03}", node_id=index + 1) for index in range(count)])


def opened(count=10, *, clock=None, is_enrolled=True, private=None, **settings):
    federation = FederationSettings(**{"round_timeout_s": 100.0, "grace_s": 10.0, **settings})
    pacing = SynchronousPacing(federation, clock or VirtualClock(), is_enrolled=is_enrolled, client_privacy=private)
    return pacing.open(1, nodes(count))


def test_a_cohort_is_drawn_by_the_seed_and_the_round():
    federation = FederationSettings(fraction=0.3, seed=5)
    pacing = SynchronousPacing(federation, VirtualClock(), is_enrolled=True)
    book = nodes(20)
    drawn = [[member.name for member in pacing.open(number, book).sampled] for number in (1, 2, 1)]
    assert [len(names) for names in drawn] == [6, 6, 6]
    assert drawn[0] == drawn[2] != drawn[1]


def test_nobody_is_asked_once_all_budgets_are_spent():
    book = nodes(2)
    for member in book.active:
        member.withdrawn = "its budget is spent"
    pacing = SynchronousPacing(FederationSettings(), VirtualClock(), is_enrolled=True)
    with pytest.raises(FederationError, match="round 3: the privacy budget of every site is spent"):
        pacing.open(3, book)


def test_it_closes_with_enough_good_updates():
    window = opened(enough=0.6, quorum=0.3)
    assert window.min_accepted == 3
    window.start()
    window.update(5)
    assert not window.is_closed
    window.update(6)
    assert window.is_closed
    assert window.late_reason == "it was let go: enough had answered"


def test_time_runs_from_the_start_to_the_timeout():
    clock = VirtualClock()
    window = opened(clock=clock)
    clock.now = 50.0  # it takes that long to ask all
    window.start()
    window.update(4)
    clock.now = 149.9
    assert not window.is_closed
    clock.now = 150.0
    assert window.is_closed
    assert window.late_reason == "no reply within 100 s"


@pytest.mark.parametrize(
    ("took", "accepted", "is_enrolled", "quorum", "ends"),
    [
        (3.0, 5, True, 0.5, 13.0),  # half have replied: ten seconds more
        (30.0, 5, True, 0.5, 60.0),  # as long again as they took
        (30.0, 4, True, 0.5, 100.0),  # not half
        (30.0, 7, True, 0.8, 100.0),  # half, but not the quorum
        (80.0, 5, True, 0.5, 100.0),  # never longer than the timeout
        (3.0, 9, False, 0.5, 100.0),  # nodes that are not enrolled are all waited for
    ],
)
def test_once_most_have_replied_the_rest_has_a_grace(took, accepted, is_enrolled, quorum, ends):
    clock = VirtualClock()
    window = opened(clock=clock, is_enrolled=is_enrolled, quorum=quorum)
    window.start()
    clock.now = took
    window.update(accepted)
    clock.now += 1
    window.update(accepted)  # said again, it does not count again
    clock.now = ends - 0.01
    assert not window.is_closed
    clock.now = ends
    assert window.is_closed


def test_absent_nodes_are_awaited_no_longer_once_most_have_replied():
    window = opened()
    window.start()
    window.update(4, is_anybody_expected=False)
    assert not window.is_closed
    window.update(5, is_anybody_expected=True)
    assert not window.is_closed
    window.update(5, is_anybody_expected=False)
    assert window.is_closed


def test_present_nodes_are_drawn_in_place_of_absent_ones_where_most_are_there():
    federation, book = FederationSettings(fraction=0.2, seed=5), nodes(10)
    pacing = SynchronousPacing(federation, VirtualClock(), is_enrolled=True)
    drawn = [member.name for member in pacing.open(1, book).sampled]
    book.find_by_name(drawn[0]).is_absent = True
    again = [[member.name for member in pacing.open(1, book).sampled] for _ in range(2)]
    assert again[0] == again[1] == sorted(again[0])
    assert len(set(again[0])) == 2
    assert drawn[1] in again[0]
    assert drawn[0] not in again[0]
    for member in book.active[:6]:
        member.is_absent = True
    book.find_by_name(drawn[0]).is_absent = book.find_by_name(drawn[1]).is_absent = True
    assert [member.name for member in pacing.open(1, book).sampled] == drawn


def test_where_all_take_part_an_absent_node_keeps_its_place():
    book = nodes(3)
    book.active[1].is_absent = True
    pacing = SynchronousPacing(FederationSettings(), VirtualClock(), is_enrolled=True)
    assert len(pacing.open(1, book).sampled) == 3


def test_a_private_round_does_not_race_ahead_on_noise_alone():
    mechanism = Mechanism(
        sampling_rate=0.5, steps=1, clipping_norm=1.0, noise_multiplier=2.0, unit="node", records_per_unit=1
    )
    private, clock = ClientPrivacy(mechanism, nodes=60, epsilon=50.0, delta=1e-3), VirtualClock()
    window = opened(60, clock=clock, private=private, fraction=0.5)
    window.start()
    window.update(0, is_anybody_expected=False)
    assert not window.is_closed
    clock.now = 100.0
    assert window.is_closed


def test_a_private_cohort_is_drawn_in_secret_and_its_round_counts_whoever_was_drawn():
    mechanism = Mechanism(
        sampling_rate=0.5, steps=1, clipping_norm=1.0, noise_multiplier=2.0, unit="node", records_per_unit=1
    )
    private = ClientPrivacy(mechanism, nodes=60, epsilon=50.0, delta=1e-3)
    windows = [opened(60, private=private, fraction=0.5) for _ in range(8)]
    drawn = {tuple(member.name for member in window.sampled) for window in windows}
    assert len(drawn) == 8
    assert len({len(names) for names in drawn}) > 1
    assert {window.min_accepted for window in windows} == {0}
