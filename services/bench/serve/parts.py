"""Where the time before a first token went, by the gateway's own traces."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from services.bench.engine.errors import BenchError
from services.bench.gateway_answers import read_answer
from services.gateway.records.trace_parts import Stage, parts
from services.gateway.records.trace_types import RequestTrace, WholeTraces

BEFORE_FIRST_TOKEN: Final = (
    Stage.QUEUE,
    Stage.PREFILL_WAIT,
    Stage.PREFILL,
    Stage.WIRE,
    Stage.DECODE_WAIT,
    Stage.DECODE_PROMPT,
)


async def read_parts(url: str, requests: int) -> dict[str, float]:
    """Of the last `requests` requests of the gateway at `url`: the median milliseconds of each stage before the first
    token, 0 for a stage that was not entered, by column. Raises BenchError.
    """
    found = await read_answer(url, "/traces", WholeTraces, limit=str(requests), whole="true")
    return parts_of(found.traces)


def parts_of(traces: Sequence[RequestTrace]) -> dict[str, float]:
    """See read_parts."""
    if not traces:
        raise BenchError("the gateway has kept no trace; let gateway.traces be larger than 0")
    seconds = [{part.stage: part.seconds for part in parts(trace)} for trace in traces]
    return {
        f"{stage.value}_p50_ms": 1e3 * float(np.median([of.get(stage, 0.0) for of in seconds]))
        for stage in BEFORE_FIRST_TOKEN
    }
