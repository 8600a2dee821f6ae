"""The paged cache: both memory orders hold the same tokens, each in its own place."""

import psutil
import pytest
import torch

from common.errors import ConfigError
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.engine.kv.paged_kv import PagedKV, num_blocks_for

HEADS, DIM, SIZE = 2, 3, 4


def layout(order: KVOrder = KVOrder.NHD, **changes: object) -> KVLayout:
    fields: dict[str, object] = {
        "model": "m",
        "dtype": KVDType.FLOAT32,
        "block_size": SIZE,
        "order": order,
        "layers": Interval(5, 7),
        "heads": Interval(2, 2 + HEADS),
        "head_dim": DIM,
    }
    return KVLayout(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=list(KVOrder))
def kv(request: pytest.FixtureRequest) -> PagedKV:
    return PagedKV(layout(request.param), 6)


def tokens(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of [heads, tokens, head_dim], every number of its own."""
    key = torch.arange(1.0, 1 + HEADS * num_tokens * DIM).view(HEADS, num_tokens, DIM)
    return key, key + 1000


def gathered(kv: PagedKV, layer: int, table: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    key = torch.empty(1, HEADS, len(table) * SIZE, DIM)
    value = torch.empty_like(key)
    kv.gather(layer, kv.context_rows([table]), key, value)
    return key[0], value[0]


def test_written_tokens_come_back_in_order(kv: PagedKV) -> None:
    key, value = tokens(7)
    table = (4, 1)
    kv.write(6, key, value, kv.token_rows([16, 17, 18, 19, 4, 5, 6]))
    back = gathered(kv, 6, table)
    assert torch.equal(back[0][:, :7], key)
    assert torch.equal(back[1][:, :7], value)
    assert not gathered(kv, 5, table)[0].any()


def test_a_block_has_the_shape_of_its_layout(kv: PagedKV) -> None:
    """Transfers rely on it: token 2 of block 3 lies at that index of the raw tensor."""
    key, value = tokens(1)
    kv.write(5, key, value, kv.token_rows([3 * SIZE + 2]))
    for cache, expected in ((kv.keys[0], key), (kv.values[0], value)):
        block = cache[3]
        token = block[2] if kv.layout.order is KVOrder.NHD else block[:, 2]
        assert torch.equal(token, expected[:, 0])
        assert int((cache != 0).sum()) == HEADS * DIM


def test_gathers_several_tables_at_once(kv: PagedKV) -> None:
    key, value = tokens(SIZE)
    kv.write(5, key, value, kv.token_rows([20, 21, 22, 23]))
    out = torch.empty(2, HEADS, 2 * SIZE, DIM)
    kv.gather(5, kv.context_rows([(0, 5), (5, 2)]), out, torch.empty_like(out))
    assert torch.equal(out[0, :, SIZE:], key)
    assert torch.equal(out[1, :, :SIZE], key)
    assert int((out != 0).sum()) == 2 * HEADS * SIZE * DIM


def test_clear_zeroes_these_tokens_only(kv: PagedKV) -> None:
    key, value = tokens(SIZE)
    kv.write(5, key, value, kv.token_rows([8, 9, 10, 11]))
    kv.clear(5, kv.token_rows([9, 11]))
    for back, written in zip(gathered(kv, 5, (2,)), (key, value), strict=True):
        assert torch.equal(back[:, [0, 2]], written[:, [0, 2]])
        assert not back[:, [1, 3]].any()


def test_copy_block_copies_every_layer(kv: PagedKV) -> None:
    key, value = tokens(SIZE)
    for layer in (5, 6):
        kv.write(layer, key + layer, value + layer, kv.token_rows([0, 1, 2, 3]))
    kv.copy_block(0, 3)
    for layer in (5, 6):
        assert torch.equal(gathered(kv, layer, (3,))[0], key + layer)
        assert torch.equal(gathered(kv, layer, (3,))[1], value + layer)


def test_budget_buys_whole_blocks() -> None:
    block_bytes = 2 * 2 * HEADS * DIM * 4 * SIZE
    assert num_blocks_for(layout(), 5 * block_bytes + block_bytes - 1) == 5
    kv = PagedKV(layout(), 5)
    assert sum(cache.nbytes for cache in (*kv.keys, *kv.values)) == 5 * block_bytes


def test_budget_below_one_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"383 bytes holds no block: one block of 4 tokens takes 384 bytes"):
        num_blocks_for(layout(), 383)


def test_layouts_it_cannot_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="'float8_e4m3fn'"):
        PagedKV(layout(dtype=KVDType.FLOAT8_E4M3FN), 1)
    with pytest.raises(ConfigError, match="packed"):
        PagedKV(layout(packed=True), 1)


@pytest.mark.parametrize("dtype", [KVDType.FLOAT32, KVDType.BFLOAT16])
def test_blocks_take_no_memory_before_they_are_written(dtype: KVDType) -> None:
    shape = layout(dtype=dtype, head_dim=64)
    budget = 1 << 29
    before = psutil.Process().memory_info().rss
    kv = PagedKV(shape, num_blocks_for(shape, budget))
    grown = psutil.Process().memory_info().rss - before
    assert grown < budget // 8, "every page of the budget was touched"
    for cache in (*kv.keys, *kv.values):
        assert cache.is_contiguous()
        assert not cache[-1].any()
        cache[-1] = 1
        assert bool(cache[-1].all())
        assert not cache[-2].any()
