"""Calls are read back from the text of an answer, however it is cut."""

import json

from hypothesis import given
from hypothesis import strategies as st

from services.text.tool_calls import CallEvent, CallGrown, CallOpened, CallReader, Words
from services.text.tools import BETWEEN, called

TEXTS = st.text(alphabet='<tool_call>\n "\\{}é日', max_size=12)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.lists(st.integers()) | st.dictionaries(TEXTS, TEXTS), max_size=3)


def read(reader: CallReader, text: str, cuts: list[int]) -> list[CallEvent]:
    events: list[CallEvent] = []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += reader.push(text[start:stop])
    return [*events, *reader.flush()]


def words(events: list[CallEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Words))


def calls(events: list[CallEvent]) -> list[tuple[str, str]]:
    """(name, arguments), checked to come in order."""
    found: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallOpened):
            assert event.index == len(found)
            found.append((event.name, ""))
        elif isinstance(event, CallGrown):
            assert event.index == len(found) - 1
            found[-1] = (found[-1][0], found[-1][1] + event.arguments)
    return found


@given(
    preamble=st.text(alphabet="<tool_cal x\n", max_size=20),
    arguments=st.lists(ARGUMENTS, min_size=1, max_size=3),
    data=st.data(),
)
def test_calls_come_back_from_any_pieces(
    preamble: str, arguments: list[dict[str, object]], data: st.DataObject
) -> None:
    text = preamble + BETWEEN.join(called(f"f{i}", each) for i, each in enumerate(arguments))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    reader = CallReader()
    events = read(reader, text, cuts)
    assert words(events) == preamble.rstrip()
    assert [(name, json.loads(given)) for name, given in calls(events)] == [
        (f"f{i}", each) for i, each in enumerate(arguments)
    ]
    assert reader.has_called


@given(text=st.text(alphabet="<tool_cal x\n", max_size=30), data=st.data())
def test_text_without_a_call_is_kept_to_the_last_space(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    reader = CallReader()
    assert words(read(reader, text, cuts)) == text
    assert not reader.has_called


def test_a_call_that_is_cut_off_has_what_there_is() -> None:
    whole = called("move", {"to": "a \\ } b"})
    for length in range(len(whole)):
        reader = CallReader()
        events = read(reader, whole[:length], [])
        assert not reader.has_called
        for name, arguments in calls(events):
            assert name == "move"
            assert '{"to":"a \\\\ } b"}'.startswith(arguments)
        # Of a marker that has not come to its end nobody knows that it is one.
        assert words(events) in (whole[:length], "")
