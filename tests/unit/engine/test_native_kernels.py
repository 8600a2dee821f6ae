"""The C++ operations do what the models' own torch code does."""

import ctypes
import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from common.compiled import user_cache
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from services.engine.kv.paged_kv import PagedKV
from services.engine.native import kernels as module
from services.engine.native import structs
from services.engine.native.kernels import ATTENTION_DIMS, Kernels
from services.engine.native.self_check import attention_agrees, trusted
from services.engine.native.structs import DecodeAttention, HeadNorm

DTYPES = [torch.float32, torch.bfloat16]


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """bfloat16: the same bits, since every rounding is in the same place."""
    tolerance = 2e-6 if actual.dtype is torch.float32 else 0
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def random(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1])) * scale).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 700])
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, rows: int) -> None:
    x, added, weight = (
        random(rows, 96, dtype=dtype),
        random(rows, 2, 48, dtype=dtype).view(rows, 96),
        random(96, dtype=dtype),
    )
    for more in (None, added):
        total = x if more is None else x + more
        wide = total.float()
        expected = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype)
        own = x.clone()
        assert_same(kernels.rms_norm(own, more, weight, 1e-5), expected)
        assert torch.equal(own, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 400])
def test_rotate(kernels: Kernels, dtype: torch.dtype, rows: int) -> None:
    queries, keys, kept, dim = 2, 1, 2, 64
    heads = queries + keys
    x = random(rows, heads + kept, dim, dtype=dtype)
    cosines, sines = random(rows, dim, dtype=dtype), random(rows, dim, dtype=dtype, scale=2)
    halves = torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1)
    expected = x * cosines[:, None] + halves * sines[:, None]
    expected[:, heads:] = x[:, heads:]
    actual = x.clone()
    kernels.rotate(actual, cosines, sines, (queries, keys))
    assert_same(actual, expected)
    # With norms: as if the heads had been normalised before.
    weights, actual = random(2, dim, dtype=dtype), x.clone()
    norms = [HeadNorm(weight=weight.data_ptr(), epsilon=1e-5) for weight in weights]
    kernels.rotate(actual, cosines, sines, (queries, keys), (norms[0], norms[1]))
    for part, weight in ((slice(queries), weights[0]), (slice(queries, heads), weights[1])):
        x[:, part] = kernels.rms_norm(x[:, part].reshape(-1, dim).contiguous(), None, weight, 1e-5).view(rows, -1, dim)
    kernels.rotate(x, cosines, sines, (queries, keys))
    assert_same(actual, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 500])
def test_silu_and_multiply(kernels: Kernels, dtype: torch.dtype, rows: int) -> None:
    x = random(rows, 2 * 112, dtype=dtype, scale=30)
    x[0, :6] = torch.tensor([0.0, -0.0, 100.0, -100.0, float("inf"), -200.0])
    gate, up = x.chunk(2, -1)
    expected = silu(gate) * up
    torch.testing.assert_close(
        kernels.silu_and_multiply(x), expected, atol=1e-6, rtol=2e-6 if x.dtype is torch.float32 else 8e-3
    )


@pytest.mark.parametrize(
    "odd", [torch.zeros(3, 64), torch.zeros(3, 32, dtype=torch.bfloat16), torch.zeros(64, 3, dtype=torch.bfloat16).T]
)
def test_a_rotation_of_another_type_or_size_is_refused(kernels: Kernels, odd: torch.Tensor) -> None:
    """C++ would read it as what it is told, to the end of it and beyond."""
    x, good = random(3, 4, 64, dtype=torch.bfloat16), torch.zeros(3, 64, dtype=torch.bfloat16)
    for rotation in ((odd, good), (good, odd)):
        with pytest.raises(ValueError, match=r"sines must be \[3, 64\] of torch.bfloat16"):
            kernels.rotate(x, *rotation, (2, 1))


@pytest.mark.parametrize("odd", [torch.ones(32), torch.ones(16, dtype=torch.bfloat16)])
def test_a_norm_of_another_type_or_size_is_refused(kernels: Kernels, odd: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"norm must be \[32\] of torch.bfloat16"):
        kernels.rms_norm(random(3, 32, dtype=torch.bfloat16), None, odd, 1e-5)


def test_not_a_number_stays_one(kernels: Kernels) -> None:
    for dtype in DTYPES:
        x = torch.full((1, 32), torch.nan).to(dtype)
        assert kernels.silu_and_multiply(x).isnan().all()
        assert kernels.rms_norm(x, None, torch.ones(32, dtype=dtype), 1e-5).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", ATTENTION_DIMS)
def test_attention_of_every_head_size_agrees(kernels: Kernels, dtype: torch.dtype, head_dim: int) -> None:
    assert attention_agrees(kernels, dtype, head_dim)


class Careless(Kernels):
    """Forgets the scale."""

    def attend(self, call: DecodeAttention) -> None:
        call.scaling = 1.0
        super().attend(call)


def test_kernels_that_do_not_agree_are_not_used(kernels: Kernels, caplog: pytest.LogCaptureFixture) -> None:
    kv = cache(64, KVDType.FLOAT32)
    assert trusted(kernels, kv) is kernels
    assert trusted(Careless(kernels.library), kv) is None
    assert "do not agree with torch" in caplog.text


def test_caches_that_no_kernel_serves(kernels: Kernels) -> None:
    assert trusted(kernels, cache(64, KVDType.FLOAT16)) is None
    assert trusted(kernels, cache(72, KVDType.FLOAT32)) is None
    assert trusted(None, cache(64, KVDType.FLOAT32)) is None


def cache(head_dim: int, dtype: KVDType) -> PagedKV:
    layout = KVLayout(
        model="m",
        dtype=dtype,
        block_size=4,
        order=KVOrder.NHD,
        layers=Interval(0, 1),
        heads=Interval(0, 1),
        head_dim=head_dim,
    )
    return PagedKV(layout, 1)


def test_a_head_size_without_code_is_refused(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match="heads of 24 elements; there are"):
        kernels.attend(DecodeAttention(dim=24))


def test_what_the_kernels_serve() -> None:
    cpu = torch.device("cpu")
    assert Kernels.serves(torch.bfloat16, cpu, 576, 1536)
    assert not Kernels.serves(torch.bfloat16, cpu, 576, 1530)
    assert not Kernels.serves(torch.float16, cpu, 576)
    assert not Kernels.serves(torch.float32, torch.device("cuda"), 576)


def test_no_place_to_compile_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()
    with caplog.at_level(logging.WARNING):
        assert Kernels.compiled(file) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_no_place_to_keep_them_is_one_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("PDMESH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert user_cache() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_every_struct_has_its_size_compared() -> None:
    own = {kind for kind in vars(structs).values() if isinstance(kind, type) and issubclass(kind, ctypes.Structure)}
    assert own == set(structs.STRUCTS)


def other(name: str, base: type[ctypes.Structure]) -> type[ctypes.Structure]:
    return type(name, (base,), {"_fields_": [("more", ctypes.c_int64)]})


@pytest.mark.parametrize("struct", [other("Step", structs.Step), other("Novel", ctypes.Structure)])
def test_a_library_with_structs_of_another_size_is_refused(
    kernels: Kernels,
    struct: type[ctypes.Structure],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "load_library", lambda *_: kernels.library)
    assert Kernels.compiled(tmp_path) is not None
    monkeypatch.setattr(module, "STRUCTS", (*structs.STRUCTS, struct))
    assert Kernels.compiled(tmp_path) is None
    assert f"not what was compiled in {struct.__name__}:" in caplog.text
