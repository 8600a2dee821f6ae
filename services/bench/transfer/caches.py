"""Caches that are full of something and whose pages have been touched, and block tables without order."""

import random
from collections.abc import Sequence
from itertools import chain

import msgspec
import torch

from common.kv.intervals import Interval
from common.kv.layout import KVLayout
from transfer.memory import PagedMemory


def touched_memory(layout: KVLayout, num_tokens: int) -> PagedMemory:
    """Room for `num_tokens` tokens. All layers and parts hold the same noise: making it is the slow part."""
    memory = PagedMemory.zeros(layout, layout.blocks_for(num_tokens))
    _fill(memory)
    return memory


def folded_memory(layout: KVLayout, num_tokens: int, own_layers: int) -> PagedMemory:
    """The same where only the first `own_layers` layers have memory, which the others use again.

    For models whose cache would not fit; it must still be far larger than the CPU's caches, or figures lie.
    """
    few = msgspec.structs.replace(layout, layers=Interval(0, own_layers))
    memory = touched_memory(few, num_tokens)
    number = len(layout.layers)
    return PagedMemory(layout, [[part[layer % own_layers] for layer in range(number)] for part in memory.parts])


def _fill(memory: PagedMemory) -> None:
    tensors = list(chain(*memory.parts))
    noise = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(0)).to(tensors[0].dtype)
    for tensor in tensors:
        tensor.copy_(noise)


def random_blocks(memory: PagedMemory, num_tokens: int, rng: random.Random) -> Sequence[int]:
    """Distinct blocks for so many tokens, in any order."""
    return rng.sample(range(memory.num_blocks), memory.layout.blocks_for(num_tokens))
