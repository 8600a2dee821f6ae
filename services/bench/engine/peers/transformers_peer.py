"""Trials (see services.engine.measuring.trial) by transformers' continuous batching. Usage: FOLDER DTYPE THREADS."""

import json
import sys
import time
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

_PATIENCE_S = 600.0


def _run(manager: Any, prompts: list[list[int]], outputs: list[int]) -> dict[str, float]:
    started = time.perf_counter()  # noqa: TID251 - a program of its own
    for prompt, tokens in zip(prompts, outputs, strict=True):
        manager.add_request(prompt, max_new_tokens=tokens, eos_token_id=-1)
    generated, left = 0, len(prompts)
    while left:
        result = manager.get_result(timeout=_PATIENCE_S)
        if result is None or result.error is not None:
            raise SystemExit(f"transformers gave up: {result and result.error}")
        if result.is_finished():
            generated += len(result.generated_tokens)
            left -= 1
    return {"seconds": time.perf_counter() - started, "tokens": generated}  # noqa: TID251


def main(folder: str, dtype: str, threads: int) -> None:
    """Serve the trials on stdin."""
    torch.set_num_threads(threads)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
    ).eval()
    # Pages and steps of a size that suits a CPU; its own choices are made from the memory of a GPU.
    batching = ContinuousBatchingConfig(
        page_size=32, num_blocks=1536, max_batch_tokens=512, allow_block_sharing=False, use_cuda_graph=False
    )
    settings = GenerationConfig(do_sample=False, max_new_tokens=1, eos_token_id=-1, pad_token_id=0)
    with torch.inference_mode():
        manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=batching)
        manager.start()
        print(json.dumps({"name": "transformers", "version": transformers.__version__}), flush=True)
        for line in sys.stdin:
            trial = json.loads(line)
            print(json.dumps(_run(manager, trial["prompts"], trial["outputs"])), flush=True)
        manager.stop(block=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
