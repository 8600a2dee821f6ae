"""The block pool against a plain model of it, under any order of operations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.kv.pool import BlockError, BlockPool


def test_allocation_is_all_or_nothing() -> None:
    pool = BlockPool(3)
    pool.allocate(2)
    with pytest.raises(BlockError, match=r"2 blocks asked for, 1 of 3 are free"):
        pool.allocate(2)
    assert pool.num_free == 1


def test_a_shared_block_is_free_after_its_last_holder() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.share([block])
    assert pool.is_shared(block)
    pool.release([block])
    assert (pool.num_used, pool.is_shared(block)) == (1, False)
    pool.release([block])
    assert pool.num_used == 0
    with pytest.raises(BlockError, match="free already"):
        pool.release([block])
    with pytest.raises(BlockError, match="cannot be shared"):
        pool.share([block])


def test_integrity_finds_a_lost_and_a_stolen_block() -> None:
    pool = BlockPool(4)
    table = pool.allocate(2)
    pool.check_integrity([table])
    with pytest.raises(BlockError):
        pool.check_integrity([table[:1]])
    with pytest.raises(BlockError):
        pool.check_integrity([table, table[:1]])


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 5)), max_size=60))
def test_any_order_of_operations_keeps_the_books(operations: list[tuple[str, int]]) -> None:
    pool = BlockPool(8)
    tables: list[list[int]] = []
    for kind, number in operations:
        if kind == "allocate" and number <= pool.num_free:
            tables.append(pool.allocate(number))
        elif kind == "share" and tables:
            table = tables[number % len(tables)]
            pool.share(table)
            tables.append(list(table))
        elif kind == "release" and tables:
            pool.release(tables.pop(number % len(tables)))
        pool.check_integrity(tables)
    for table in tables:
        pool.release(table)
    assert pool.num_free == 8
