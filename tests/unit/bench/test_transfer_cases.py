import pytest

from services.bench.transfer.cases import MIB, QUICK, SOURCE, TARGETS, WHOLE, LayoutCase, TakeCase, take_cases


@pytest.mark.parametrize("size_bytes", sorted(WHOLE.rounds))
def test_all_layouts_move_as_many_bytes_of_the_source(size_bytes: int):
    for layout in LayoutCase:
        case = TakeCase("tcp", size_bytes, layout, checksum=False)
        share = len(TARGETS[layout].heads) / len(SOURCE.heads)
        assert case.num_tokens * SOURCE.token_bytes * share == size_bytes


def test_the_wire_carries_as_much_unless_there_is_a_cast():
    wire = {layout: TakeCase("tcp", 16 * MIB, layout, checksum=False).wire_bytes for layout in LayoutCase}
    assert wire == {
        LayoutCase.IDENTITY: 16 * MIB,
        LayoutCase.FULL: 16 * MIB,
        LayoutCase.FULL_CAST: 8 * MIB,
    }


def test_every_backend_layout_and_checksum_is_a_case():
    cases = take_cases(("a", "b"), MIB)
    assert len(set(cases)) == 2 * len(LayoutCase) * 2


def test_full_changes_block_size_order_and_heads_and_keeps_elements():
    full = TARGETS[LayoutCase.FULL]
    assert (full.block_size, full.order, full.dtype) == (64, "HND", SOURCE.dtype)
    assert len(full.heads) * 2 == len(SOURCE.heads)


def test_the_whole_run_has_the_sizes_of_the_goals():
    assert sorted(WHOLE.rounds) == [1 * MIB, 16 * MIB, 256 * MIB]
    assert WHOLE.largest_bytes == 256 * MIB
    assert sorted(QUICK.rounds) == [1 * MIB, 16 * MIB]
