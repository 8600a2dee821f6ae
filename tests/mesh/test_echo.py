"""Scored prompts and batches through a whole mesh in one process: where they run, what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.types import InstanceConfig
from services.engine.model.torch_runner import build_runner
from services.engine.runner import Runner
from services.engine.sampling.sampling import Sampler
from services.text.tokenizer import Tokenizer
from tests.mesh.inprocess import InProcessMesh, in_process_mesh, mesh_config
from tests.unit.engine.tiny_models import make_model

PROMPT = "the quick brown fox jumps over the lazy dog"
LONG = PROMPT * 3
"""More tokens than D computes in one step."""
TINY: dict[str, object] = {"vocab_size": 258, "max_position_embeddings": 256}
ALONE = "prefill=-; decode=d0; split=0; kv-bytes=0"


def tiny_llama(instance: InstanceConfig) -> Runner:
    """Random weights, the same in every instance, for the deterministic model's tokens."""
    return build_runner(
        make_model("Llama", TINY),
        Sampler(),
        fingerprint="tiny",
        block_size=instance.block_size,
        order=instance.order,
        kv_memory_bytes=4 << 20,
    )


async def scored(mesh: InProcessMesh, prompt: Any, **more: Any) -> tuple[list[dict[str, Any]], str | None]:
    answer = await mesh.complete(prompt, **{"echo": True, "logprobs": 3, **more})
    assert answer.status == 200, answer.body
    return answer.body["choices"], answer.placement


async def test_the_logprobs_of_a_prompt_are_those_of_the_model_teacher_forced(deterministic_folder: Path) -> None:
    """The prefix cache is on, and the mesh would split every prompt: neither may have a part in this."""
    reference = make_model("Llama", TINY)
    tokens = Tokenizer.load(deterministic_folder).encode(LONG, add_special_tokens=False)
    with torch.inference_mode():
        expected = torch.log_softmax(reference(torch.tensor([tokens])).logits[0].float(), dim=-1)
    async with in_process_mesh(mesh_config(prefix_cache=True), deterministic_folder, build=tiny_llama) as mesh:
        warm = await mesh.complete(LONG)
        assert warm.placement is not None
        assert warm.placement.startswith("prefill=p0; decode=d0; split=128;")
        for more in ({"max_tokens": 0}, {"max_tokens": 1}, {"max_tokens": 4, "n": 2, "temperature": 1, "seed": 3}):
            choices, placement = await scored(mesh, LONG, **more)
            assert placement == ALONE
            for choice in choices:
                check(choice, tokens, expected)
        assert (await mesh.complete(LONG)).text == warm.text


def check(choice: dict[str, Any], tokens: tuple[int, ...], expected: torch.Tensor) -> None:
    """`expected` are the logprobs [tokens, vocabulary] that the reference has after each of `tokens`."""
    said = choice["logprobs"]
    assert choice["text"].startswith(LONG)
    assert said["tokens"][: len(LONG)] == list(LONG)
    assert said["text_offset"][: len(LONG)] == list(range(len(LONG)))
    assert (said["token_logprobs"][0], said["top_logprobs"][0]) == (None, None)
    for place, token in enumerate(tokens[1:]):
        assert said["token_logprobs"][place + 1] == pytest.approx(float(expected[place, token]), abs=1e-3)
        best = max(said["top_logprobs"][place + 1].values())
        assert best == pytest.approx(float(expected[place].max()), abs=1e-3)


async def test_a_batch_says_what_each_prompt_says_alone(deterministic_folder: Path) -> None:
    prompts = [PROMPT[i:] + PROMPT[:i] for i in range(12)]
    async with in_process_mesh(mesh_config(prefill=2, decode=2), deterministic_folder) as mesh:
        alone = [(await mesh.complete(prompt, n=2, seed=3, temperature=1)).body["choices"] for prompt in prompts]
        batch = await mesh.complete(prompts, n=2, seed=3, temperature=1)  # type: ignore[arg-type]
        assert [c["text"] for c in batch.body["choices"]] == [c["text"] for choices in alone for c in choices]
        assert [c["index"] for c in batch.body["choices"]] == list(range(24))
        assert batch.body["usage"]["prompt_tokens"] == 12 * len(PROMPT)


async def test_one_prompt_too_many_for_the_queue_drops_the_whole_batch(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(queue=4), deterministic_folder) as mesh:
        answer = await mesh.complete([PROMPT] * 60)  # type: ignore[arg-type]
        assert (answer.status, answer.body["error"]["code"]) == (429, "overloaded")
        assert "prompt[" in answer.body["error"]["message"]
        await mesh.until_nothing_is_held()
        assert (await mesh.complete(PROMPT)).status == 200
