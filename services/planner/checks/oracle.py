"""The spec-based model beside aiconfigurator's estimates: rows for a report. Neither is tuned to the other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

import msgspec

from services.planner.checks.aiconfigurator import Answer, Ask, Mode, Question
from services.simulator.hardware.catalogue import Catalogue
from services.simulator.hardware.models import ModelSpec, find_model
from services.simulator.hardware.stages import step_timer
from services.simulator.hardware.strategy import Strategy

Row = Mapping[str, str | int | float | bool | None]

PROMPTS = (512, 1024, 4096)
BATCHES = (1, 16, 64)
IN_FLIGHT = (64, 128, 192, 256)
"""Of which the best is taken; our engines take 256 at most."""
PROMPT, OUTPUT = 1024, 256
"""Tokens of every request where steps of decodes, or whole requests, are asked about."""
_DTYPE: Final = "bfloat16"


class Machine(msgspec.Struct, frozen=True):
    """One instance that both know."""

    device: str
    """A name of the catalogue."""
    system: str
    """The same in aiconfigurator's words."""
    model: str
    tp: int


MACHINES = (
    Machine("A100 80GB SXM", "a100_sxm", "LLaMA3-8B", 1),
    Machine("H100 SXM", "h100_sxm", "LLaMA3-8B", 1),
    Machine("L40S", "l40s", "LLaMA3-8B", 1),
    Machine("A100 80GB SXM", "a100_sxm", "Llama2-70B", 4),
    Machine("H100 SXM", "h100_sxm", "Llama2-70B", 4),
    Machine("H100 SXM", "h100_sxm", "Llama2-70B", 8),
    Machine("L40S", "l40s", "Llama2-70B", 8),
)


class Served(msgspec.Struct, frozen=True):
    """Most output tokens per second and device of an instance that serves requests of PROMPT and OUTPUT tokens."""

    closed_form: float
    simulated: float


Best = Callable[[Machine], Served]
"""Our own, of one instance."""


def oracle_rows(ask: Ask, best: Best, catalogue: Catalogue, machines: Sequence[Machine] = MACHINES) -> list[Row]:
    """Ours, theirs and the ratio: of prefill steps, of decode steps, and of the most throughput. Raises ConfigError."""
    questions = [(machine, question) for machine in machines for question in questions_of(machine)]
    models = {machine.model: find_model(machine.model) for machine in machines}
    found = ask([question for _, question in questions], list(models.values()))
    answered = [(*asked, answer) for asked, answer in zip(questions, found.answers, strict=True)]
    rows = []
    for machine, group in groupby(answered, key=lambda each: each[0]):
        pairs = [(question, answer) for _, question, answer in group]
        rows += [
            *_step_rows(machine, pairs, catalogue, models[machine.model]),
            _serving_row(machine, [pair for pair in pairs if pair[0].mode is Mode.SERVE], best(machine)),
        ]
    return [{**row, "aiconfigurator": found.version} for row in rows]


def questions_of(machine: Machine) -> Iterator[Question]:
    """What is asked about one machine."""
    for mode, prompts, batches in (
        (Mode.PREFILL, PROMPTS, (1,)),
        (Mode.DECODE, (PROMPT,), BATCHES),
        (Mode.SERVE, (PROMPT,), IN_FLIGHT),
    ):
        for prompt in prompts:
            for batch in batches:
                yield Question(mode, machine.system, machine.model, machine.tp, prompt, OUTPUT, batch)


def _step_rows(
    machine: Machine, pairs: Sequence[tuple[Question, Answer]], catalogue: Catalogue, model: ModelSpec
) -> Iterator[Row]:
    timer = step_timer(catalogue.device(machine.device), model, _DTYPE, Strategy(tp=machine.tp))
    for question, answer in pairs:
        if question.mode is Mode.PREFILL:
            ours, theirs = timer.step_seconds([(question.prompt_tokens, 0)], 0, 0), answer.ttft_s
        elif question.mode is Mode.DECODE:
            context = question.batch * (question.prompt_tokens + question.output_tokens // 2)
            ours, theirs = timer.step_seconds((), question.batch, context), answer.tpot_s
        else:
            continue
        sizes = {"prompt_tokens": question.prompt_tokens, "batch": question.batch}
        yield _row(machine, question.mode, answer, sizes, ("seconds", ours, theirs or None))


def _serving_row(machine: Machine, pairs: Sequence[tuple[Question, Answer]], ours: Served) -> Row:
    """Their best of the loads that they have no doubts about."""
    sound = [pair for pair in pairs if not pair[1].problem and pair[1].tokens_per_s_per_gpu > 0]
    question, answer = max(sound or pairs[:1], key=lambda pair: pair[1].tokens_per_s_per_gpu)
    theirs = answer.tokens_per_s_per_gpu if sound else None
    sizes = {"prompt_tokens": PROMPT, "batch": question.batch}
    row = _row(machine, Mode.SERVE, answer, sizes, ("tokens_per_s_per_device", ours.simulated, theirs))
    return {**row, "our_closed_form_tokens_per_s_per_device": ours.closed_form}


def _row(
    machine: Machine, mode: Mode, answer: Answer, sizes: Mapping[str, int], compared: tuple[str, float, float | None]
) -> Row:
    name, ours, theirs = compared
    return {
        "kind": "oracle",
        "where": "simulated",
        "repeats": 1,
        "device": machine.device,
        "model": machine.model,
        "tp": machine.tp,
        "what": mode.name.lower(),
        **sizes,
        f"our_{name}": ours,
        f"their_{name}": theirs,
        "ours_over_theirs": ours / theirs if theirs else None,
        "their_backend": f"vllm {answer.backend_version}".strip(),
        "problem": answer.problem or None,
    }
