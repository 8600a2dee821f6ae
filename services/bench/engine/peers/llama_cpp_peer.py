"""Trials (see services.engine.measuring.trial) by llama.cpp, through llama-cpp-python's low-level bindings.

Usage: FILE.gguf THREADS. All prompts in batches first, then all sequences decoded together, each until it has its
tokens: what llama.cpp's own `batched` and `parallel` programs do. Greedy.
"""

import json
import sys
import time
from typing import Any

import numpy as np

try:
    import llama_cpp
except ImportError as error:
    sys.exit(f"llama-cpp-python cannot be imported: {error}; install it, or name an interpreter that has it")

_BATCH, _MICRO_BATCH = 2048, 512
_SILENT: Any = llama_cpp.llama_log_callback(lambda *_: None)
"""Kept alive as long as the library may call it."""


class Engine:
    """One model with one context for the largest trial so far."""

    def __init__(self, file: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_SILENT, None)
        self._model: Any = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads = threads
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._size = (0, 0)

    def run(self, prompts: list[list[int]], outputs: list[int]) -> dict[str, float]:
        """Serve one trial."""
        self._prepare(len(prompts), sum(map(len, prompts)) + sum(outputs))
        started = time.perf_counter()  # noqa: TID251 - a program of its own
        last = self._prefill(prompts)
        positions = [len(prompt) for prompt in prompts]
        left = [tokens - 1 for tokens in outputs]
        while running := [index for index, tokens in enumerate(left) if tokens > 0]:
            for index in running:
                self._add(last[index], positions[index], index, wanted=True)
                positions[index] += 1
                left[index] -= 1
            for row, token in enumerate(self._decode()):
                last[running[row]] = token
        return {"seconds": time.perf_counter() - started, "tokens": sum(outputs)}  # noqa: TID251

    def _prepare(self, sequences: int, tokens: int) -> None:
        tokens = -(-tokens // 1024) * 1024
        if (sequences, tokens) != self._size:
            if self._size != (0, 0):
                llama_cpp.llama_free(self._context)
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = tokens, _BATCH, _MICRO_BATCH
            params.n_seq_max, params.n_threads, params.n_threads_batch = sequences, self._threads, self._threads
            params.kv_unified = True
            self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
            self._size = (sequences, tokens)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._batch.n_tokens = 0

    def _prefill(self, prompts: list[list[int]]) -> list[int]:
        """The first token of each."""
        first: list[int] = []
        for index, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self._add(token, position, index, wanted=position == len(prompt) - 1)
                if self._batch.n_tokens == _BATCH:
                    first += self._decode()
        if self._batch.n_tokens:
            first += self._decode()
        return first

    def _add(self, token: int, position: int, sequence: int, *, wanted: bool) -> None:
        batch, row = self._batch, self._batch.n_tokens
        batch.token[row], batch.pos[row], batch.logits[row] = token, position, wanted
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        batch.n_tokens = row + 1

    def _decode(self) -> list[int]:
        """Compute the batch; the likeliest token after each row that wanted one."""
        batch = self._batch
        if (code := llama_cpp.llama_decode(self._context, batch)) != 0:
            raise SystemExit(f"llama_decode ended with {code}")
        wanted = [row for row in range(batch.n_tokens) if batch.logits[row]]
        batch.n_tokens = 0
        logits = (llama_cpp.llama_get_logits_ith(self._context, row) for row in wanted)
        return [int(np.ctypeslib.as_array(row, (self._vocab_size,)).argmax()) for row in logits]


def main(file: str, threads: int) -> None:
    """Serve the trials on stdin."""
    engine = Engine(file, threads)
    print(json.dumps({"name": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}"}), flush=True)
    for line in sys.stdin:
        trial = json.loads(line)
        print(json.dumps(engine.run(trial["prompts"], trial["outputs"])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
