"""Stop strings across pieces of text."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.text.stops import StopMatcher

small_alphabet = st.text("ab\n", max_size=20)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The rule, character by character: the first match to be complete, of equals the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(parts=st.lists(small_alphabet, max_size=8), stops=stop_lists)
def test_the_cut_does_not_depend_on_the_pieces(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(part) for part in parts)
    expected, matched = cut("".join(parts), stops)
    assert expected.startswith(shown)
    assert (shown + matcher.flush(), matcher.matched) == (expected, matched)


@given(parts=st.lists(small_alphabet, max_size=8), stops=stop_lists)
def test_no_more_is_held_back_than_a_stop_string_could_need(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for i, part in enumerate(parts):
        shown += matcher.push(part)
        held = "".join(parts[: i + 1])[len(shown) :]
        assert matcher.matched or held == "" or any(stop.startswith(held) for stop in stops)


def test_the_beginning_of_a_stop_string_waits_for_the_next_piece() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("Hello.\n") == "Hello."
    assert matcher.push("\nUs") == ""
    assert matcher.push("ually") == "\n\nUsually"
    assert matcher.matched is None


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("a ENDb") == "a "
    assert (matcher.push("c"), matcher.flush()) == ("", "")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopMatcher(["a", ""])
