"""Keys of KV blocks: equal exactly where the model, the block size and all tokens so far are."""

from hypothesis import given
from hypothesis import strategies as st

from common.kv.prefix import KEY_BYTES, PrefixKeys, root_key

TOKENS = st.lists(st.integers(0, 300_000), max_size=24)


def keys_of(tokens: list[int], size: int = 4, model: str = "m") -> list[bytes]:
    keys = PrefixKeys(root_key(model, size), size)
    return keys.first(len(tokens) // size, lambda start, stop: tokens[start:stop])


@given(TOKENS, TOKENS, st.integers(1, 5))
def test_keys_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int], size: int) -> None:
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    pairs = list(zip(keys_of(one, size), keys_of(other, size), strict=False))
    assert [a == b for a, b in pairs] == [(index + 1) * size <= same for index in range(len(pairs))]


def test_the_model_and_the_size_of_the_blocks_count() -> None:
    tokens = list(range(8))
    kinds = [keys_of(tokens), keys_of(tokens, model="n"), keys_of(tokens, size=8), keys_of(tokens, size=2)]
    flat = [key for keys in kinds for key in keys]
    assert len(set(flat)) == len(flat) == 2 + 2 + 1 + 4
    assert {len(key) for key in flat} == {KEY_BYTES}


def test_a_copy_goes_on_by_itself() -> None:
    tokens, others = list(range(12)), [*range(8), 77, 78, 79, 80]
    keys = PrefixKeys(root_key("m", 4), 4)
    keys.first(2, lambda start, stop: tokens[start:stop])
    twin = keys.copy()
    assert keys.at(2, lambda start, stop: tokens[start:stop]) == keys_of(tokens)[2]
    assert twin.first(3, lambda start, stop: others[start:stop]) == keys_of(others)
