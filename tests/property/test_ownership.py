"""Under any order of events a hand-off is released at most once, and nobody reads it after its end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.kv.ownership import (
    Acknowledged,
    Ended,
    Event,
    Expired,
    Handoff,
    IllegalEvent,
    Phase,
    ReadBegan,
    ReadEnded,
    Release,
    TakerAccepted,
    TakerFailed,
    Withdrawn,
    step,
)

ENDS = (Acknowledged(7), Expired(), Withdrawn("w"), TakerFailed("f"))
EVENTS: tuple[Event, ...] = (TakerAccepted(), ReadBegan(), ReadEnded(), *(Ended(end) for end in ENDS))


def attempt(handoff: Handoff, event: Event) -> tuple[Handoff, Release | None]:
    """An illegal event is refused and changes nothing."""
    try:
        return step(handoff, event)
    except IllegalEvent:
        return handoff, None


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_any_order(events: list[Event]) -> None:
    handoff, releases, reads, first_end = Handoff(), [], 0, None
    for event in events:
        before = handoff
        handoff, release = attempt(handoff, event)
        changed = handoff != before
        reads += changed * (isinstance(event, ReadBegan) - isinstance(event, ReadEnded))
        if changed and isinstance(event, Ended):
            first_end = first_end or event.end
        releases += [] if release is None else [release]

        assert handoff.readers == reads >= 0
        assert handoff.end == first_end, "the first end wins"
        assert (handoff.phase is Phase.RELEASED) == (first_end is not None and reads == 0)
        assert len(releases) == (handoff.phase is Phase.RELEASED)
        if changed and isinstance(event, ReadBegan):
            assert before.phase is Phase.ACCEPTED
    assert all(release.end == first_end for release in releases)


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_a_deadline_and_the_end_of_reads_always_release(events: list[Event]) -> None:
    handoff = Handoff()
    for event in events:
        handoff, _ = attempt(handoff, event)
    handoff, _ = step(handoff, Ended(Expired()))
    while handoff.readers:
        handoff, _ = step(handoff, ReadEnded())
    assert handoff.phase is Phase.RELEASED


@pytest.mark.parametrize(
    ("handoff", "event"),
    [
        (Handoff(), ReadBegan()),
        (Handoff(), ReadEnded()),
        (Handoff(), Ended(Acknowledged(1))),
        (Handoff(), Ended(TakerFailed("f"))),
        (Handoff(Phase.ACCEPTED), TakerAccepted()),
        (Handoff(Phase.EXPIRED, readers=1, end=Expired()), ReadBegan()),
        (Handoff(Phase.RELEASED, end=Expired()), ReadBegan()),
        (Handoff(Phase.RELEASED, end=Expired()), ReadEnded()),
        (Handoff(Phase.RELEASED, end=Expired()), TakerAccepted()),
    ],
)
def test_illegal_events_name_state_and_event(handoff: Handoff, event: Event) -> None:
    with pytest.raises(IllegalEvent, match=type(event).__name__) as illegal:
        step(handoff, event)
    assert repr(handoff) in str(illegal.value)


def test_the_way_of_a_good_hand_off() -> None:
    handoff, seen = Handoff(), [Phase.OFFERED]
    released = None
    for event in (TakerAccepted(), ReadBegan(), Ended(Acknowledged(7)), ReadEnded()):
        handoff, released = step(handoff, event)
        seen.append(handoff.phase)
    assert seen == [Phase.OFFERED, Phase.ACCEPTED, Phase.ACCEPTED, Phase.LANDED, Phase.RELEASED]
    assert released == Release(Acknowledged(7))
