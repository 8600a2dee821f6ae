"""The engine's benchmark: its workloads, its arithmetic, its processes and its GGUF files."""

import asyncio
import sys
import time
from pathlib import Path

import gguf
import msgspec
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

from services.bench.engine.errors import BenchError
from services.bench.engine.gguf_file import interleaved, write_gguf
from services.bench.engine.loads import Load, loads
from services.bench.engine.run import Sample, phases, summary
from services.bench.engine.system import System
from services.simulator.workload.requests import first, scaled
from services.simulator.workload.synthetic import synthetic

LOAD = Load("X", "two small requests", ((1, 2, 3), (4, 5)), (3, 1))


def test_workloads() -> None:
    conversation = scaled(first(synthetic(64, seed=0), 64), 8)
    made = {load.name: load for load in loads(conversation, vocab_size=100, quick=False)}
    assert list(made) == ["A", "B", "C", "D"]
    assert (made["A"].prompt_tokens, made["A"].decode_tokens) == (16 * 256, 16 * 63)
    assert [len(prompt) for prompt in made["B"].prompts] == [r.prompt_tokens for r in conversation.requests]
    assert {token for load in made.values() for prompt in load.prompts for token in prompt} <= set(range(100))
    assert made["A"] == loads(conversation, vocab_size=100, quick=False)[0], "the same for every system and run"
    assert len(set(made["A"].prompts)) == 16, "no engine may share prefixes"


def test_phases() -> None:
    whole, prefill, decode = phases(LOAD, [Sample(4.0, 1.0), Sample(2.0, 1.0), Sample(3.0, 1.0)])
    assert (whole.name, whole.tokens_per_s.values) == ("end_to_end", (1.0, 2.0, 4 / 3))
    assert (prefill.name, prefill.tokens_per_s.values) == ("prefill", (5.0, 5.0, 5.0))
    assert (decode.name, decode.tokens_per_s.values) == ("decode", (2 / 3, 2.0, 1.0))


def test_a_prefill_that_took_longer_than_the_whole_divides_by_nothing_negative() -> None:
    assert phases(LOAD, [Sample(2.0, 2.5)])[2].tokens_per_s.median == pytest.approx(2 / 0.02)


def test_summary_names_workload_a_end_to_end() -> None:
    row = {"system": "llama.cpp", "workload": "A", "phase": "end_to_end", "pdmesh_over": 1.5}
    assert summary([row, {**row, "phase": "decode", "pdmesh_over": 2.0}, {"system": "pdmesh"}]) == {
        "pdmesh_over_llama_cpp": 1.5,
        "pdmesh_over_llama_cpp_A_end_to_end": 1.5,
        "pdmesh_over_llama_cpp_A_decode": 2.0,
    }


PROGRAM = """
import json, sys
print("a library says hello")
print(json.dumps({"name": "fake", "version": "1"}), flush=True)
for line in sys.stdin:
    trial = json.loads(line)
    print(json.dumps({"seconds": len(trial["prompts"]), "tokens": sum(trial["outputs"]) - MISSING}), flush=True)
"""


async def test_a_system_serves_trials() -> None:
    system = await System.start([sys.executable, "-c", PROGRAM.replace("MISSING", "0")])
    try:
        assert (system.name, system.version) == ("fake", "1")
        assert [await system.seconds(LOAD) for _ in range(2)] == [2.0, 2.0]
    finally:
        await system.close()


async def test_a_system_dies_with_the_bench_process_though_it_stands_still() -> None:
    bench = f"""
import asyncio, sys
from services.bench.engine.system import System
async def main():
    system = await System.start([sys.executable, "-c", {PROGRAM!r}])
    print(system.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", bench, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    system = psutil.Process(int(await process.stdout.readline()))
    assert await asyncio.to_thread(_comes_to, system, {psutil.STATUS_STOPPED})
    process.kill()
    await process.wait()
    # Where nobody reaps it, as in a container, it stays as a zombie.
    assert await asyncio.to_thread(_comes_to, system, {psutil.STATUS_ZOMBIE, None})


def _comes_to(process: psutil.Process, states: set[str | None]) -> bool:
    """Whether it is soon in one of these states; None: it is no more."""
    for _ in range(500):
        try:
            status = process.status()
        except psutil.NoSuchProcess:
            status = None
        if status in states:
            return True
        time.sleep(0.01)
    return False


async def test_a_system_that_loses_tokens_is_refused() -> None:
    system = await System.start([sys.executable, "-c", PROGRAM.replace("MISSING", "1")])
    try:
        with pytest.raises(BenchError, match="fake gave 3 tokens of 4"):
            await system.seconds(LOAD)
    finally:
        await system.close()


async def test_a_system_that_does_not_start_is_an_error() -> None:
    with pytest.raises(BenchError, match="has ended"):
        await System.start([sys.executable, "-c", "raise SystemExit('no such library')"])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_gguf_holds_every_weight(llama: Path, tmp_path: Path) -> None:
    write_gguf(llama, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(tensors) == 2 + 2 * 9
    down = tensors["blk.1.ffn_down.weight"]
    expected = LlamaForCausalLM.from_pretrained(llama).model.layers[1].mlp.down_proj.weight.bfloat16()
    stored = torch.frombuffer(bytearray(down.data.tobytes()), dtype=torch.bfloat16).view(expected.shape)
    assert torch.equal(stored, expected)
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_gguf_of_another_kind_of_model_is_refused(llama: Path, tmp_path: Path) -> None:
    config = msgspec.json.decode((llama / "config.json").read_bytes())
    (llama / "config.json").write_bytes(msgspec.json.encode(config | {"model_type": "gpt2"}))
    with pytest.raises(BenchError, match="type 'gpt2'; only 'llama'"):
        write_gguf(llama, tmp_path / "model.gguf")


def test_rotating_neighbours_after_interleaving_is_rotating_halves() -> None:
    heads, dim = 2, 8
    rows = torch.randn(heads * dim, 1)
    angles = torch.randn(dim // 2)
    halves = rows.view(heads, dim)
    by_halves = halves * angles.cos().repeat(2) + rotate_half(halves) * angles.sin().repeat(2)
    pairs = interleaved(rows, heads).view(heads, dim // 2, 2)
    even, odd = pairs.unbind(-1)
    by_pairs = torch.stack((even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()), -1)
    torch.testing.assert_close(by_pairs.view(-1, 1), interleaved(by_halves.reshape(-1, 1), heads))
