"""Whole steps of a few decodes in C++: which models have them, and that they compute what the model does."""

from collections.abc import Iterator

import pytest
import torch
from transformers.models.olmo import modeling_olmo

from common.kv.layout import KVOrder
from services.engine.cpu.few_rows import FewRows, model_parts
from services.engine.cpu.few_rows_check import proved
from services.engine.cpu.prepack import PackedLinear
from services.engine.model.torch_runner import TorchRunner, build_runner
from services.engine.native.kernels import Kernels
from services.engine.native.structs import Step
from services.engine.runner import StepItem
from tests.unit.engine.tiny_models import MODELS, VOCAB, WIDE_MODELS, RecordingSampler, make_model, sample_request

BLOCK_SIZE = 4


def weights_lie_in_panels() -> bool:
    """As oneDNN packs them where registers are wide; elsewhere nothing here is served."""
    return PackedLinear(torch.ones(64, 64), None).panels is not None


pytestmark = pytest.mark.skipif(not weights_lie_in_panels(), reason="this CPU's weights are packed in another order")


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def runner_of(name: str, kernels: Kernels | None, dtype: torch.dtype = torch.float32) -> TorchRunner:
    return build_runner(
        make_model(*(MODELS | WIDE_MODELS)[name]).to(dtype),
        RecordingSampler(),
        fingerprint="f",
        block_size=BLOCK_SIZE,
        order=KVOrder.HND,
        kv_memory_bytes=1 << 22,
        kernels=kernels,
    )


def contexts(count: int) -> list[int]:
    return [index * 5 % 37 for index in range(count)]


def decodes(runner: TorchRunner, count: int) -> list[StepItem]:
    """One token each, after contexts of different lengths that the runner computes first."""
    tables = iter(range(runner.num_blocks))
    items = []
    for index, context in enumerate(contexts(count)):
        blocks = tuple(next(tables) for _ in range(context // BLOCK_SIZE + 1))
        tokens = torch.randint(VOCAB, (context,), generator=torch.Generator().manual_seed(index)).tolist()
        if context:
            runner.run([StepItem(tokens=tokens, start=0, blocks=blocks)])
        items.append(
            StepItem(tokens=(index % VOCAB,), start=context, blocks=blocks, sample=sample_request(context + 1))
        )
    return items


def logits_of(runner: TorchRunner, items: list[StepItem]) -> torch.Tensor:
    runner.run(items)
    sampler = runner._sampler
    assert isinstance(sampler, RecordingSampler)
    return sampler.logits


class Counting(Kernels):
    """Knows how many steps it computed."""

    steps = 0

    def step(self, call: Step) -> None:
        self.steps += 1
        super().step(call)


@pytest.mark.parametrize("name", WIDE_MODELS)
@pytest.mark.parametrize("rows", [1, 2, 9, 32])
def test_decodes_are_computed_in_one_call(kernels: Kernels, threads: int, name: str, rows: int) -> None:
    counting = Counting(kernels.library)
    native, plain = runner_of(name, counting), runner_of(name, None)
    items, before = decodes(native, rows), counting.steps
    expected = logits_of(plain, decodes(plain, rows))
    torch.testing.assert_close(logits_of(native, items), expected, atol=1e-4, rtol=0)
    assert counting.steps == before + 1


@pytest.mark.parametrize("name", WIDE_MODELS)
def test_bfloat16_stays_within_its_rounding(kernels: Kernels, name: str) -> None:
    native, plain = runner_of(name, kernels, torch.bfloat16), runner_of(name, None, torch.bfloat16)
    assert native._few_rows is not None
    actual, expected = (logits_of(runner, decodes(runner, 5)) for runner in (native, plain))
    assert (actual - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_a_step_of_more_rows_or_with_a_chunk_is_computed_by_layers(kernels: Kernels) -> None:
    counting = Counting(kernels.library)
    runner = runner_of("llama-wide", counting)
    many, few = decodes(runner, 40), decodes(runner, 2)
    before = counting.steps
    runner.run(many)
    runner.run([*few, StepItem(tokens=(1, 2, 3), start=0, blocks=(runner.num_blocks - 1,))])
    assert counting.steps == before


def test_rows_that_do_not_sample_cost_no_logits(kernels: Kernels) -> None:
    native, plain = runner_of("llama-wide", kernels), runner_of("llama-wide", None)
    answers = []
    for runner in (native, plain):
        first, second, third = decodes(runner, 3)
        answers.append(logits_of(runner, [StepItem(first.tokens, first.start, first.blocks), second, third]))
    assert answers[0].shape == (2, VOCAB)
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "item", [StepItem((VOCAB,), 0, (0,)), StepItem((1,), 0, (1 << 20,)), StepItem((1,), 5, (-1, 0))]
)
def test_what_there_is_not_is_refused(kernels: Kernels, item: StepItem) -> None:
    runner = runner_of("llama-wide", kernels)
    with pytest.raises(ValueError, match=r"in \[0, "):
        runner.run([item])


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma2", "gemma3"])
def test_models_of_another_kind_have_none(kernels: Kernels, name: str) -> None:
    assert runner_of(name, kernels)._few_rows is None


def test_a_model_that_computes_something_more_has_none(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All the parts and names; only the numbers tell."""
    runner = runner_of("llama-wide", kernels)
    model = runner._model
    assert proved(model, runner.kv, kernels) is not None
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output * 1.25)
    assert model_parts(model) is not None
    assert proved(model, runner.kv, kernels) is None
    assert "do not agree with the model" in caplog.text


def test_a_model_that_rotates_in_another_type_has_none(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runner_of("llama-wide", kernels, torch.bfloat16)._model
    assert model_parts(model) is not None
    monkeypatch.setattr(type(model.model.rotary_emb), "forward", modeling_olmo.OlmoRotaryEmbedding.forward)
    assert model_parts(model) is None


def test_positions_beyond_the_first_table(kernels: Kernels) -> None:
    """The tables of the rotation grow with the positions asked for."""
    native, plain = runner_of("llama-wide", kernels), runner_of("llama-wide", None)
    few = native._few_rows
    assert isinstance(few, FewRows)
    start, answers = 2000, []
    for runner in (native, plain):
        item = StepItem((5,), start, tuple(range(start // BLOCK_SIZE + 1)), sample_request(start + 1))
        answers.append(logits_of(runner, [item]))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)
