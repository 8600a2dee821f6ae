"""How much of a hand-off hides behind the compute of P: the time it still takes after the last layer."""

from collections.abc import Awaitable, Callable, Sequence
from statistics import median

from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.transfer.cases import LAYERS, SOURCE, LayoutCase, TakeCase
from services.bench.transfer.taker import Taken, Taker

_CALIBRATION = 5
_ALONE, _PACED = "alone", "paced"


async def measure_layerwise(
    taker: Taker, schemes: Sequence[str], prompts: Sequence[int], rounds: int, on_step: OnStep
) -> list[Row]:
    """A row for each backend and prompt length. Nothing is computed: layers are announced evenly over a time as long
    as the transfer alone, which is what makes the rows emulated."""
    return [await _row(taker, scheme, tokens, rounds, on_step) for scheme in schemes for tokens in prompts]


async def _row(taker: Taker, scheme: str, num_tokens: int, rounds: int, on_step: OnStep) -> Row:
    case = TakeCase(scheme, num_tokens * SOURCE.token_bytes, LayoutCase.IDENTITY, checksum=True)
    pace_s = median([(await taker.take(case)).seconds for _ in range(_CALIBRATION)])
    variants: dict[str, Callable[[], Awaitable[Taken]]] = {
        _ALONE: lambda: taker.take(case),
        _PACED: lambda: taker.take(case, pace_s),
    }
    samples = await interleave(variants, rounds, lambda label: on_step(f"{case}, {label}"))
    transfer = Measured.of(sample.seconds for sample in samples[_ALONE])
    tail = Measured.of(sample.tail_s for sample in samples[_PACED])
    return {
        "kind": "layerwise",
        "where": Where.EMULATED,
        "repeats": rounds,
        "backend": scheme,
        "prompt_tokens": num_tokens,
        "layers": LAYERS,
        "size_bytes": case.size_bytes,
        "checksum": case.checksum,
        "compute_s": pace_s,
        **transfer.columns("transfer_s"),
        **tail.columns("tail_s"),
        **tail.over(transfer).columns("tail_over_transfer"),
    }
