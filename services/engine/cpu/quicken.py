"""Make a bound model faster where it stands, without changing what it computes."""

import logging
from typing import TYPE_CHECKING

from services.engine.cpu.fusing import fuse_layers
from services.engine.cpu.huge_pages import use_huge_pages
from services.engine.cpu.prepack import PackedLinear, can_pack, pack_linears
from services.engine.native.kernels import Kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)


def quicken(model: "PreTrainedModel", kernels: Kernels | None) -> bool:
    """Fuse the layers that can be, with `kernels`, and pack the other weights; whether anything was done.

    On a CPU only: elsewhere, and where the weights cannot be packed, the model stays as it is.
    """
    if not can_pack(model.dtype, model.device):
        return False
    fused = 0 if kernels is None else fuse_layers(model, kernels)
    packed = pack_linears(model)
    use_huge_pages(
        (module.panels.address, module.panels.size_bytes)
        for module in model.modules()
        if isinstance(module, PackedLinear) and module.panels is not None
    )
    _log.info("%d layers fused, %d other linear layers packed", fused, packed)
    return fused + packed > 0
