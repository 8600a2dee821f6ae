"""Gather and scatter of equal rows with torch: the path that works on every device, and the oracle of faster ones."""

import torch

_LANES = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.uint8))
"""Rows are moved as the widest integers they divide into: torch's scatter is several times slower on bytes."""


def as_rows(tensor: torch.Tensor, row_elements: int) -> torch.Tensor:
    """`tensor` (contiguous) as [rows, lanes]: rows of `row_elements` elements each, seen as integers. A view."""
    rows = tensor.view(-1, row_elements)
    row_bytes = row_elements * tensor.element_size()
    offset_bytes = tensor.storage_offset() * tensor.element_size()
    lane = next(lane for size, lane in _LANES if row_bytes % size == 0 and offset_bytes % size == 0)
    return rows.view(lane)


def gather_rows(cache: torch.Tensor, rows: torch.Tensor, staging: torch.Tensor) -> None:
    """staging[i] = cache[rows[i]] for [rows, lanes] tensors; `staging` is on the CPU."""
    if cache.device.type == "cpu":
        torch.index_select(cache, 0, rows, out=staging)
    else:
        staging.copy_(torch.index_select(cache, 0, rows))


def scatter_rows(cache: torch.Tensor, rows: torch.Tensor, staging: torch.Tensor) -> None:
    """cache[rows[i]] = staging[i] for [rows, lanes] tensors; `rows` are distinct."""
    cache.index_copy_(0, rows, staging.to(cache.device))
