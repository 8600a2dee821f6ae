"""Packed weights compute what torch.nn.Linear does, and keep nothing else alive."""

import ctypes
import gc
import weakref

import pytest
import torch

from services.engine.cpu.prepack import PackedLinear, can_pack, pack_linears
from tests.unit.engine.tiny_models import make_model

CPU = torch.device("cpu")


def needs(dtype: torch.dtype) -> None:
    if not can_pack(dtype, CPU):
        pytest.skip(f"this CPU packs no {dtype}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 16, 33])
@pytest.mark.parametrize("has_bias", [False, True])
def test_same_product(dtype: torch.dtype, rows: int, has_bias: bool) -> None:
    needs(dtype)
    torch.manual_seed(rows)
    linear = torch.nn.Linear(80, 56, bias=has_bias).to(dtype).requires_grad_(False)
    x = torch.randn(1, rows, 80).to(dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(PackedLinear(linear.weight, linear.bias)(x), linear(x), atol=tolerance, rtol=tolerance)


def test_the_weights_of_a_slice_are_packed() -> None:
    needs(torch.float32)
    weight = torch.randn(96, 40)[::2]
    x = torch.randn(3, 40)
    torch.testing.assert_close(PackedLinear(weight, None)(x), x @ weight.T, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "device"),
    [(torch.float16, "cpu"), (torch.float64, "cpu"), (torch.bfloat16, "cuda"), (torch.float32, "meta")],
)
def test_what_is_not_packed(dtype: torch.dtype, device: str) -> None:
    assert not can_pack(dtype, torch.device(device))


class Without:
    """A torch that has no such operators."""


class Wrong:
    """Operators that compute something else."""

    def _reorder_linear_weight(self, weight: torch.Tensor, rows: int) -> torch.Tensor:
        return weight

    def _linear_pointwise(self, x: torch.Tensor, weight: torch.Tensor, bias: object, *more: object) -> torch.Tensor:
        return x @ weight.T


@pytest.mark.parametrize("operators", [Without(), Wrong()])
def test_operators_that_are_missing_or_wrong_are_not_used(operators: object) -> None:
    assert not can_pack(torch.float32, CPU, operators)


def test_every_linear_layer_is_packed_once_and_freed() -> None:
    needs(torch.float32)
    model = make_model("Llama", {})
    alone = weakref.ref(model.model.layers[0].mlp.down_proj.weight)
    tied = weakref.ref(model.lm_head.weight)
    assert pack_linears(model) == 3 * 7 + 1
    assert not [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    gc.collect()
    assert alone() is None
    assert tied() is model.get_input_embeddings().weight, "the embedding needs it"
    assert pack_linears(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [576, 97])
def test_panels_hold_the_weights(dtype: torch.dtype, outputs: int) -> None:
    """The order is told by what is found, so a product of what lies there must be the layer's."""
    needs(dtype)
    weight, x = torch.randn(outputs, 48).to(dtype), torch.randn(3, 48).to(dtype)
    packed = PackedLinear(weight, None)
    if packed.panels is None:
        pytest.skip("this CPU's weights are packed in another order")
    together = 2 if dtype is torch.bfloat16 else 1
    raw = (ctypes.c_char * packed.panels.size_bytes).from_address(packed.panels.address)
    rows = packed.panels.padded_inputs // together
    panels = torch.frombuffer(raw, dtype=dtype).view(-1, rows, packed.panels.width, together)
    found = panels.transpose(1, 2).flatten(0, 1).flatten(1)[:outputs, : weight.shape[1]]
    assert torch.equal(found, weight)
    torch.testing.assert_close(packed(x), x @ found.T, atol=1e-2, rtol=1e-2)


def test_operators_that_do_not_say_where_the_weights_lie() -> None:
    assert PackedLinear(torch.randn(64, 64), None, Wrong()).panels is None
