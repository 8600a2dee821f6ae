"""NVIDIA's aiconfigurator (Apache-2.0, 2601.06288) as an oracle: another's estimates of the same step and machine.

It runs in an interpreter of its own, which the user names: its dependencies are many and are not ours.
"""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from common.errors import ConfigError
from services.simulator.hardware.models import ModelSpec

_PROBE = Path(__file__).with_name("aiconfigurator_probe.py")
_TIMEOUT_S = 600.0


class Mode(StrEnum):
    """What is asked, in aiconfigurator's words."""

    PREFILL = "static_ctx"
    """One step of whole prompts."""
    DECODE = "static_gen"
    """Steps of decodes, from the first output token to the last, in the mean."""
    SERVE = "agg"
    """Continuous batching on one instance, `batch` requests in flight."""


class Question(msgspec.Struct, frozen=True):
    """One machine at one load, everything in 16 bits."""

    mode: Mode
    system: str
    """aiconfigurator's word for the device."""
    model: str
    """The name of a ModelSpec."""
    tp: int
    prompt_tokens: int
    output_tokens: int
    batch: int
    backend: str = "vllm"


class Answer(msgspec.Struct, frozen=True):
    """What it estimates; `problem` says why there is nothing, or what is doubtful (such as too little memory)."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens_per_s_per_gpu: float = 0.0
    """Output tokens."""
    backend_version: str = ""
    problem: str = ""


class Answers(msgspec.Struct, frozen=True):
    """In the order of the questions."""

    version: str
    """Of aiconfigurator."""
    answers: tuple[Answer, ...]


Ask = Callable[[Sequence[Question], Sequence[ModelSpec]], Answers]
"""Where estimates come from: `asker`, or what was recorded of it."""


def asker(python: Path) -> Ask:
    """Asks the aiconfigurator of the interpreter `python`; asking raises ConfigError where there is none."""

    def ask(questions: Sequence[Question], models: Sequence[ModelSpec]) -> Answers:
        return _checked(_run(python, request_json(questions, models)), len(questions))

    return ask


def request_json(questions: Sequence[Question], models: Iterable[ModelSpec]) -> bytes:
    """What the probe reads: the questions, and a config.json for each model, so that nothing is fetched."""
    return msgspec.json.encode(
        {"models": {model.name: hf_config(model) for model in models}, "questions": list(questions)}
    )


def hf_config(model: ModelSpec) -> dict[str, object]:
    """A config.json of the model's shape, as a Llama in bfloat16."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.tied,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }


def _run(python: Path, request: bytes) -> bytes:
    # -I: neither this project's folder nor the user's variables may decide what is imported there.
    command = [str(python), "-I", str(_PROBE)]
    try:
        done = subprocess.run(command, input=request, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"--aiconfigurator {str(python)!r} cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(
            f"--aiconfigurator {str(python)!r} failed ({said[-1] if said else f'exit {done.returncode}'}); "
            "give an interpreter where `pip install aiconfigurator` was run"
        )
    return done.stdout


def _checked(output: bytes, expected: int) -> Answers:
    try:
        found = msgspec.json.decode(output, type=Answers)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the answer of aiconfigurator cannot be read: {error}") from error
    if len(found.answers) != expected:
        raise ConfigError(f"aiconfigurator answered {len(found.answers)} of {expected} questions; run it again")
    return found
