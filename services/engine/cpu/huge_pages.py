"""Weights in huge pages: a decode reads all of them once, and with pages of 4 KiB the CPU looks up one for each."""

import ctypes
import mmap
from collections.abc import Iterable
from typing import Final

_PAGE: Final = 1 << 21
_COLLAPSE: Final = 25
"""MADV_COLLAPSE, of Linux 6.1: now, not some day."""


def use_huge_pages(regions: Iterable[tuple[int, int]]) -> None:
    """Ask the kernel for huge pages where these regions, of address and bytes, lie. A wish: nothing fails.

    Whole huge pages are asked for, so their neighbours' memory may get them, too.
    """
    pages = [(start // _PAGE * _PAGE, -(-(start + size) // _PAGE) * _PAGE) for start, size in regions]
    huge_page: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
    if huge_page is None:
        return
    advise = ctypes.CDLL(None).madvise
    # All are marked before the first is collapsed: only then does the kernel see neighbours as one.
    for advice in (huge_page, _COLLAPSE):
        for start, stop in pages:
            advise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), ctypes.c_int(advice))
