"""The runner on a CUDA or ROCm device against transformers' own forward on the same device."""

import pytest
import torch

from common.kv.layout import KVOrder
from services.engine.runner import ScoreRequest, StepItem
from tests.unit.engine.tiny_models import MODELS, Subject

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


@pytest.mark.parametrize("order", list(KVOrder))
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_decodes_in_one_step(name: str, order: KVOrder) -> None:
    subject = Subject(name).to("cuda")
    sequences = subject.sequences(4, order)
    ends = [(20, 27), (12, 13), (0, 13), (40, 41), (1, 2)]
    prompts = [subject.prompt(stop, seed) for seed, (_, stop) in enumerate(ends)]
    parts = [(prompt, start, stop, sequences.blocks(stop)) for prompt, (start, stop) in zip(prompts, ends, strict=True)]
    sequences.step(*[(prompt, 0, start, blocks) for prompt, start, _, blocks in parts if start > 0])
    logits = sequences.step(*parts)
    expected = torch.stack([subject.reference(prompt)[-1] for prompt in prompts])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_scores_of_a_prompt(name: str) -> None:
    subject = Subject(name).to("cuda")
    sequences = subject.sequences(4)
    prompt = subject.prompt(21)
    item = StepItem(prompt, 0, sequences.blocks(21), score=ScoreRequest(prompt[1:], 0))
    (found,) = sequences.runner.run([item])
    expected = torch.log_softmax(subject.reference(prompt), dim=-1)[range(20), list(prompt[1:])]
    assert [one.logprobs.chosen for one in found if one.logprobs] == pytest.approx(expected.tolist(), abs=1e-4)


def test_announced_layers_are_complete_for_another_stream() -> None:
    subject = Subject("llama-gqa").to("cuda")
    sequences = subject.sequences(4)
    kv = sequences.runner.kv
    blocks = sequences.blocks(8)
    complete: list[bool] = []

    def look(layer: int) -> None:
        with torch.Stream("cuda"):
            complete.append(not bool(kv.keys[layer][list(blocks)].isnan().any()))

    sequences.step((subject.prompt(8), 0, 8, blocks), on_layer=look)
    assert complete == [True] * len(kv.keys)
