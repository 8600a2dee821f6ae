"""What is told to the gateway, bit by bit, adds up to what is held."""

from hypothesis import given
from hypothesis import strategies as st

from common.kv.prefix import PrefixNews
from services.engine.kv import prefix_journal
from services.engine.kv.prefix_journal import PrefixJournal


def key(number: int) -> bytes:
    return number.to_bytes(4, "big")


@given(
    st.lists(st.one_of(st.tuples(st.just("note"), st.integers(0, 9)), st.just(("tell", 0)), st.just(("begin", 0)))),
    st.integers(1, 3),
)
def test_whoever_listens_knows_what_is_held(operations: list[tuple[str, int]], most: int) -> None:
    journal, held, known = PrefixJournal(most), set[bytes](), set[bytes]()

    def hear() -> bool:
        if (news := journal.take()) is None:
            return False
        assert 0 < len(news.added) + len(news.removed) <= most
        assert not known & set(news.added), "told twice"
        assert set(news.removed) <= known, "forgotten though never told"
        known.difference_update(news.removed)
        known.update(news.added)
        return True

    for kind, number in operations:
        if kind == "tell":
            hear()
        elif kind == "begin":
            known.clear()
            journal.begin()
        else:
            changed = key(number)
            held ^= {changed}
            is_held = changed in held
            journal.note(PrefixNews((changed,) if is_held else (), () if is_held else (changed,)))
    while hear():
        pass
    assert known == held


def test_a_heartbeat_is_bounded() -> None:
    journal = PrefixJournal()
    journal.note(PrefixNews(tuple(map(key, range(5000)))))
    sizes = []
    while (news := journal.take()) is not None:
        sizes.append(len(news.added))
    assert sum(sizes) == 5000
    assert max(sizes) <= prefix_journal.MOST_KEYS
