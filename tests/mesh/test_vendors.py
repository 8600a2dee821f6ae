"""Two instances whose KV lies differently, as two vendors' would: each prefills for the other, with the real model.

Each test prints a line of the report (`scripts/vendors` shows them).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from common.config.types import InstanceConfig, MeshConfig, TransferConfig
from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Role
from tests.mesh.answers import (
    MAX_TOKENS,
    QUICK_PROMPTS,
    TOKEN_ELEMENTS,
    Case,
    ask_all,
    assert_equal_answers,
    bytes_handed_off,
    check_placement,
    likeness,
    splits_of,
)
from tests.mesh.processes import processes
from tests.mesh.prompts import PROMPTS
from tests.mesh.reference import Expected, Reference

pytestmark = [pytest.mark.timeout(900), pytest.mark.vendors]

Vendor = dict[str, Any]
A: Vendor = {"block_size": 16, "order": KVOrder.NHD, "dtype": "float32"}
B: Vendor = {"block_size": 64, "order": KVOrder.HND, "dtype": "float32"}
B_NARROW: Vendor = B | {"dtype": "bfloat16"}
GPU: Vendor = {"device": "cuda"}
FEW = QUICK_PROMPTS[::2]


@pytest.fixture(scope="module")
def answer_of(smollm2_folder: Path) -> Callable[[int], Expected]:
    reference = Reference(smollm2_folder)
    known: dict[int, Expected] = {}

    def answer(prompt: int) -> Expected:
        if prompt not in known:
            known[prompt] = reference.answer(PROMPTS[prompt], MAX_TOKENS)
        return known[prompt]

    return answer


def mesh_of(prefill: Vendor, decode: Vendor, backend: str) -> MeshConfig:
    instances = (
        InstanceConfig(id=InstanceId("p0"), role=Role.PREFILL, **prefill),
        InstanceConfig(id=InstanceId("d0"), role=Role.DECODE, **decode),
    )
    return msgspec.structs.replace(MeshConfig(), transfer=TransferConfig(backends=(backend,)), instances=instances)


def name_of(vendor: Vendor) -> str:
    return " ".join(str(value) for value in vendor.values())


async def serve(
    folder: Path,
    config: MeshConfig,
    prompts: tuple[int, ...],
    answer_of: Callable[[int], Expected],
    element_bytes: int,
    *,
    is_exact: bool,
) -> None:
    """Every prompt with split 0, full and one between; the bytes are those planned; then the answers, and a line."""
    expected = {prompt: answer_of(prompt) for prompt in prompts}
    cases = [Case(p, split) for p in prompts for split in splits_of(expected[p].prompt_tokens, 1, seed=p)]
    async with processes(folder, config) as mesh:
        outcomes = await ask_all(mesh, cases)
        planned = sum(
            check_placement(outcome, expected[outcome.case.prompt], TOKEN_ELEMENTS * element_bytes)
            for outcome in outcomes
        )
        await mesh.until_nothing_is_held()
        assert await bytes_handed_off(mesh) == {config.transfer.backends[0]: planned}
    if is_exact:
        assert_equal_answers(outcomes, expected)
    found = likeness(outcomes, expected)
    prefill, decode = (name_of(vars_of(instance)) for instance in config.instances)
    print(
        f"vendors: {prefill} -> {decode} over {config.transfer.backends[0]}: {len(outcomes)} answers, "
        f"{100 * found.same_tokens:.1f} % of tokens as the reference, largest logprob error {found.logprob_error:.1e}"
    )
    if not is_exact:
        assert found.same_tokens > 0.5
        assert found.logprob_error < 1.0


def vars_of(instance: InstanceConfig) -> Vendor:
    names = ("device", "block_size", "order", "dtype")
    return {name: getattr(instance, name) for name in names if getattr(instance, name) is not None}


@pytest.mark.parametrize(
    ("prefill", "decode", "backend"),
    [(A, B, "shm"), pytest.param(B, A, "tcp", marks=pytest.mark.slow)],
    ids=["A to B over shm", "B to A over tcp"],
)
async def test_each_prefills_for_the_other(
    smollm2_folder: Path, answer_of: Callable[[int], Expected], prefill: Vendor, decode: Vendor, backend: str
) -> None:
    config = mesh_of(prefill, decode, backend)
    await serve(smollm2_folder, config, FEW, answer_of, element_bytes=4, is_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["shm", "tcp"])
@pytest.mark.parametrize(("prefill", "decode"), [(A, B), (B, A)], ids=["A to B", "B to A"])
async def test_each_prefills_for_the_other_with_more_prompts(
    smollm2_folder: Path, answer_of: Callable[[int], Expected], prefill: Vendor, decode: Vendor, backend: str
) -> None:
    config = mesh_of(prefill, decode, backend)
    await serve(smollm2_folder, config, QUICK_PROMPTS, answer_of, element_bytes=4, is_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["shm", "tcp"])
@pytest.mark.parametrize(("prefill", "decode"), [(A, B_NARROW), (B_NARROW, A)], ids=["A to narrow B", "narrow B to A"])
async def test_with_casts(
    smollm2_folder: Path, answer_of: Callable[[int], Expected], prefill: Vendor, decode: Vendor, backend: str
) -> None:
    config = mesh_of(prefill, decode, backend)
    await serve(smollm2_folder, config, QUICK_PROMPTS, answer_of, element_bytes=2, is_exact=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("backend", ["shm", "tcp"])
@pytest.mark.parametrize(("prefill", "decode"), [(A, B | GPU), (B | GPU, A)], ids=["CPU to CUDA", "CUDA to CPU"])
async def test_with_a_gpu(
    smollm2_folder: Path, answer_of: Callable[[int], Expected], prefill: Vendor, decode: Vendor, backend: str
) -> None:
    """float32 at both ends, but a GPU adds in another order: near-ties are what promise 1 allows."""
    config = mesh_of(prefill, decode, backend)
    await serve(smollm2_folder, config, QUICK_PROMPTS, answer_of, element_bytes=4, is_exact=True)
