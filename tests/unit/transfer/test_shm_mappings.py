"""Mappings kept between hand-offs: bounded, and proved to be of the same memory."""

from transfer.backends.shm.mappings import KeptMappings
from transfer.backends.shm.memory import TOKEN_BYTES, PeerZone
from transfer.testing import eventually

SIZE = 100


def zone(number: int, token: int = 0) -> PeerZone:
    """The zone with this inode; memory of its own each time, as two mappings of one zone are."""
    return PeerZone(memoryview(bytearray(SIZE - TOKEN_BYTES) + bytes([token] * TOKEN_BYTES)), (1, number))


async def test_a_mapping_is_kept_for_one_user() -> None:
    kept = KeptMappings()
    first, second, third = zone(1), zone(1), zone(1)
    assert kept.take(first) is first
    kept.keep(first)
    assert kept.bytes_kept == SIZE
    assert kept.take(second) is first
    assert kept.take(third) is third
    assert kept.bytes_kept == 0
    kept.close()


async def test_an_inode_alone_proves_nothing() -> None:
    kept = KeptMappings()
    kept.keep(zone(1, token=7))
    other = zone(1, token=8)
    assert kept.take(other) is other
    kept.close()


async def test_kept_twice_counts_once() -> None:
    kept = KeptMappings()
    kept.keep(zone(1))
    newer = zone(1)
    kept.keep(newer)
    assert kept.bytes_kept == SIZE
    assert kept.take(zone(1)) is newer
    kept.close()


async def test_bounded_in_bytes() -> None:
    kept = KeptMappings(max_bytes=3 * SIZE)
    zones = [zone(number) for number in range(5)]
    for each in zones:
        kept.keep(each)
        assert kept.bytes_kept <= 3 * SIZE
    assert [kept.take(zone(number)) is zones[number] for number in range(5)] == [False, False, True, True, True]
    too_big = KeptMappings(max_bytes=SIZE - 1)
    too_big.keep(zone(1))
    assert too_big.bytes_kept == 0
    kept.close()


async def test_bounded_in_time() -> None:
    kept = KeptMappings(max_s=0.01)
    kept.keep(zone(1))
    await eventually(lambda: kept.bytes_kept == 0)


async def test_a_mapping_in_use_is_not_counted_when_its_time_is_over() -> None:
    kept = KeptMappings(max_s=0.01)
    kept.keep(zone(1))
    kept.take(zone(1))
    kept.keep(zone(2))
    await eventually(lambda: kept.bytes_kept == 0)
    kept.keep(zone(1))
    assert kept.bytes_kept == SIZE
    kept.close()


async def test_closed_it_keeps_nothing() -> None:
    kept = KeptMappings()
    kept.keep(zone(1))
    kept.close()
    kept.keep(zone(2))
    assert kept.bytes_kept == 0
