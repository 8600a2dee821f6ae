"""Random bytes taken many at a time."""

from common.entropy import Entropy


def test_no_byte_is_given_twice() -> None:
    entropy = Entropy()
    taken = [entropy.take(16) for _ in range(1000)]
    assert {len(one) for one in taken} == {16}
    assert len(set(taken)) == 1000


def test_a_block_that_is_nearly_used_up_gives_whole_answers() -> None:
    entropy = Entropy()
    sizes = [4090, 16, 4096, 1]
    assert [len(entropy.take(size)) for size in sizes] == sizes


def test_two_have_nothing_in_common() -> None:
    assert Entropy().take(32) != Entropy().take(32)


def test_text_and_numbers() -> None:
    entropy = Entropy()
    assert len(bytes.fromhex(entropy.hex(10))) == 10
    numbers = [entropy.bits63() for _ in range(200)]
    assert all(0 <= number < 2**63 for number in numbers)
    assert max(numbers) > 2**62
