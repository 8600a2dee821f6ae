"""Linear layers whose weights lie as the CPU's matrix library wants them: the only room with torch's names for it.

torch keeps weights row by row, and oneDNN reorders them at every product. The operators here are those that torch's own
compiler uses when it freezes a model; they are private, so they are tried on numbers before they are trusted.
"""

import ctypes
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec
import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

_ROWS_HINT: Final = 16
"""Rows the order of the weights is chosen for. Measured best, or equal, from 1 to 256 rows."""
_PROBE_ROWS: Final = (1, 3, 16)
_TOLERANCE: Final = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference allowed, relative to the largest result; the types that are worth packing."""

_PANEL_WIDTHS: Final = (64, 32)
"""What oneDNN takes where registers are wide, the smaller for few outputs and many threads."""
_TOGETHER: Final = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs whose weights lie side by side."""


class Panels(msgspec.Struct, frozen=True):
    """Where packed weights lie, for code that reads them: [outputs / width][inputs / together][width][together].

    Side by side lie the weights of two inputs in bfloat16; in float32 each lies alone. Outputs and inputs are padded.
    """

    address: int
    size_bytes: int
    width: int
    padded_inputs: int


class PackedLinear(torch.nn.Module):
    """x · weightᵀ + bias, as torch.nn.Linear; keeps the packed weight only, which no state_dict and no `.to` sees."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, operators: Any = torch.ops.mkldnn) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._product = operators._linear_pointwise
        self._packed = operators._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)
        self.bias = None if bias is None else bias.detach()
        self.panels = _panels(self._packed, weight.detach().contiguous(), operators)
        """None where the order of the packed weights is another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        product: torch.Tensor = self._product(x, self._packed, self.bias, "none", [], "")
        return product


def can_pack(dtype: torch.dtype, device: torch.device, operators: Any = torch.ops.mkldnn) -> bool:
    """Whether this torch on this machine packs weights of `dtype` and computes what torch.nn.Linear does."""
    if device.type != "cpu" or dtype not in _TOLERANCE:
        return False
    try:
        return all(_agrees(dtype, rows, operators) for rows in _PROBE_ROWS)
    except (AttributeError, RuntimeError, TypeError) as error:
        _log.warning("weights are not packed, products will be slower: %s", str(error).splitlines()[0])
        return False


def pack_linears(model: "PreTrainedModel") -> int:
    """Replace every torch.nn.Linear of `model`, whose own weights are freed unless something else holds them.

    Call `can_pack` first. Returns how many there were; 0 for a model that is packed already.
    """
    places = list(_places(model))
    for parent, name, module in places:
        setattr(parent, name, PackedLinear(module.weight, module.bias))
    return len(places)


def _places(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            # A subclass may compute something else.
            if type(child) is torch.nn.Linear:
                yield parent, name, child


def _panels(packed: torch.Tensor, weight: torch.Tensor, operators: Any) -> Panels | None:
    """What the order of `packed` is, is not asked but tried: some of its panels must hold what those of `weight` do."""
    try:
        address, size = operators.data_ptr(packed), operators._nbytes(packed)
        memory = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=weight.dtype)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    for width in _PANEL_WIDTHS:
        padded_inputs = memory.numel() // (-(-len(weight) // width) * width)
        if _lies_in_panels(memory, weight, width, padded_inputs):
            return Panels(address, size, width, padded_inputs)
    return None


def _lies_in_panels(memory: torch.Tensor, weight: torch.Tensor, width: int, padded_inputs: int) -> bool:
    (outputs, inputs), together = weight.shape, _TOGETHER[weight.dtype]
    panels = -(-outputs // width)
    is_whole = inputs % together == padded_inputs % together == 0 and memory.numel() == panels * width * padded_inputs
    if not is_whole or padded_inputs < inputs:
        return False
    found = memory.view(panels, -1, width, together)[:, : inputs // together]
    for index in {0, panels - 1}:
        rows = weight[index * width : (index + 1) * width]
        if not torch.equal(found[index, :, : len(rows)], rows.view(len(rows), -1, together).transpose(0, 1)):
            return False
    return True


def _agrees(dtype: torch.dtype, rows: int, operators: Any) -> bool:
    made = torch.Generator().manual_seed(rows)
    weight, bias, x = (torch.randn(shape, generator=made).to(dtype) for shape in ((48, 80), (48,), (1, rows, 80)))
    expected = linear(x.double(), weight.double(), bias.double())
    actual = PackedLinear(weight, bias, operators)(x)
    close = (actual.double() - expected).abs().max() <= _TOLERANCE[dtype] * expected.abs().max()
    return actual.shape == expected.shape and actual.dtype == dtype and bool(close)
