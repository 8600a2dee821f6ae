"""The layer times of Helix (ASPLOS 2025; Apache-2.0): LLaMA-30B and Llama2-70B on A100-40GB, V100, L4 and T4."""

from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

from services.planner.checks.cases import MeasuredCase, MeasuredStep, SpecSubject, number, table_rows
from services.simulator.hardware.models import find_model

FILE: Final = Path("helix", "helix_layer_times.csv")
_COLUMNS: Final = ("model", "machine", "phase", "tokens_in_batch", "ms_per_layer")
_MODELS: Final = {"llama1_30b": "LLaMA-30B", "llama2_70b": "Llama2-70B"}
_DEVICES: Final = {"a100": "A100 40GB SXM", "v100": "V100 16GB SXM2", "l4": "L4", "t4": "T4"}
_PROFILED: Final = {"prompt": {500, 1000, 2000, 4000}, "decode": {2, 8, 30, 100, 200}}
_PROMPT_TOKENS: Final = 763
_CONTEXT: Final = 879
"""Mean prompt, and prompt and half an answer, of the trace that Helix serves: the table does not say its lengths."""
_COARSE_S: Final = 1e-3
_FINE_S: Final = 1e-4
_FINE_BELOW_S: Final = 10e-3
"""Prompts, and decodes of 10 ms or more, are given in whole milliseconds per layer."""


def helix_cases(data: Path) -> list[MeasuredCase]:
    """Cases for each model and machine, one for each phase; seconds are of all layers. Raises ConfigError.

    Machines of several devices (l4x2, t4x4) run tensor-parallel in them. Embedding and output are not in the times.
    """
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = defaultdict(list)
    for row in table_rows(data / FILE.parent, FILE.name, _COLUMNS):
        tokens, ms = int(number(row, "tokens_in_batch")), number(row, "ms_per_layer")
        # Rows of 0 tokens are 0 ms: where the simulator of Helix begins to interpolate, not a step.
        if tokens > 0 and row["model"] in _MODELS:
            found[row["model"], row["machine"], row["phase"]].append((tokens, ms / 1e3))
    return [_case(*key, points) for key, points in sorted(found.items())]


def _case(name: str, machine: str, phase: str, points: list[tuple[int, float]]) -> MeasuredCase:
    device, _, count = machine.partition("x")
    model = find_model(_MODELS[name])
    return MeasuredCase(
        table="helix",
        model=name,
        device=device,
        tp=int(count or 1),
        steps=tuple(_step(phase, model.layers, tokens, seconds) for tokens, seconds in points),
        # Layers alone: no vocabulary, so neither embedding nor output.
        spec=SpecSubject(_DEVICES[device], msgspec.structs.replace(model, vocab=0)) if device in _DEVICES else None,
        has_contexts=False,
        assumed_context=_CONTEXT,
        assumed_prompt=_PROMPT_TOKENS,
    )


def _step(phase: str, layers: int, tokens: int, layer_seconds: float) -> MeasuredStep:
    is_prompt = phase == "prompt"
    resolution = _FINE_S if not is_prompt and layer_seconds < _FINE_BELOW_S else _COARSE_S
    return MeasuredStep(
        layers * layer_seconds,
        tokens in _PROFILED[phase],
        prompts=(tokens,) if is_prompt else (),
        sequences=0 if is_prompt else tokens,
        resolution_s=layers * resolution,
    )
