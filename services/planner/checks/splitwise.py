"""The table of splitwise-sim (MIT): Llama2-70B and BLOOM-176B on DGX machines of A100s and H100s, TP 2 to 8."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Final

from services.planner.checks.cases import MeasuredCase, MeasuredStep, SpecSubject, number, table_rows
from services.simulator.hardware.models import ModelSpec, find_model

FILE: Final = Path("splitwise", "perf_model.csv")
_COLUMNS: Final = (
    "model",
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
)
_PROFILED_PROMPTS: Final = {128, 1024, 4096}
_PROFILED_BATCHES: Final = {1, 8, 32}
_PROFILED_ANSWERS: Final = {128, 1024, 4096}
_BLOOM: Final = ModelSpec(name="BLOOM-176B", layers=70, hidden=14336, heads=112, kv_heads=112, head_dim=128,
                          intermediate=38229, vocab=250880, tied=True)  # fmt: skip
"""Its MLP has two matrices of 4·hidden, and ModelSpec three of `intermediate`: 8/3·hidden are as many parameters."""
_DEVICES: Final = {"a100-80gb": "A100 80GB SXM", "h100-80gb": "H100 SXM"}
"""h100-80gb-pcap, power-capped, is left out: it was not measured. It is h100-80gb with prompts 1.3 times as slow."""

_Key = tuple[str, str, int]
_Shape = tuple[int, int, int]
"""Prompt tokens, batch, answer tokens."""


def splitwise_cases(data: Path) -> list[MeasuredCase]:
    """A case for each model, hardware and TP; every step is the median of its repeats. Raises ConfigError.

    The rows of TP2 with batch 64 are left out: their prompts are said to take 0.8 s, less than those of batch 8.
    """
    found: dict[_Key, dict[_Shape, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in table_rows(data / FILE.parent, FILE.name, _COLUMNS):
        key = (row["model"], row["hardware"], int(number(row, "tensor_parallel")))
        shape = (int(number(row, "prompt_size")), int(number(row, "batch_size")), int(number(row, "token_size")))
        if key[1] in _DEVICES and not (key[2] == 2 and shape[1] == 64):
            found[key][shape].append((number(row, "prompt_time") / 1e3, number(row, "token_time") / 1e3))
    return [_case(key, shapes) for key, shapes in sorted(found.items())]


def _case(key: _Key, shapes: dict[_Shape, list[tuple[float, float]]]) -> MeasuredCase:
    name, hardware, tp = key
    model = _BLOOM if name == "bloom-176b" else find_model("Llama2-70B")
    prompts: dict[tuple[int, int], list[float]] = defaultdict(list)
    steps = []
    for (prompt, batch, answer), times in sorted(shapes.items()):
        prompts[prompt, batch] += [seconds for seconds, _ in times]
        steps.append(_decode(prompt, batch, answer, median(seconds for _, seconds in times)))
    steps += [_prefill(prompt, batch, median(times)) for (prompt, batch), times in sorted(prompts.items())]
    return MeasuredCase(
        table="splitwise",
        model=name,
        device=hardware,
        tp=tp,
        steps=tuple(steps),
        spec=SpecSubject(_DEVICES[hardware], model),
    )


def _prefill(prompt: int, batch: int, seconds: float) -> MeasuredStep:
    return MeasuredStep(seconds, batch == 1 and prompt in _PROFILED_PROMPTS, prompts=(prompt,) * batch)


def _decode(prompt: int, batch: int, answer: int, seconds: float) -> MeasuredStep:
    """`seconds` is the mean over an answer, so the context is the prompt and half of the answer."""
    is_profiled = prompt == 512 and batch in _PROFILED_BATCHES and answer in _PROFILED_ANSWERS
    return MeasuredStep(seconds, is_profiled, sequences=batch, context=batch * (prompt + answer // 2))
