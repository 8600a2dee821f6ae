"""Each prompt of a batch has a trace of its own, and all of them end with the call."""

import pytest

from common.clock import ManualClock
from common.errors import Failure, FailureKind
from common.ids import RequestId
from common.messages.sampling import SamplingParams
from services.gateway.openai.types import Usage
from services.gateway.records.traces import Traces
from services.gateway.stream import GenerationRequest

CALL = RequestId("r-1")


@pytest.mark.parametrize("outcome", ["finished", "decode_lost"])
def test_all_end_with_the_call(outcome: str) -> None:
    traces = Traces(10, "fixed", ManualClock(1.0), lambda _: None)
    for name, call in (("r-1", None), ("r-1-1", CALL), ("r-2", None), ("r-1-2", CALL)):
        traces.arrived(GenerationRequest(RequestId(name), (1, 2), SamplingParams(), 4, call=call))
    if outcome == "finished":
        traces.finished(CALL, Usage(6, 3, 9), 1.0)
    else:
        traces.failed(CALL, Failure(FailureKind.DECODE_LOST, "gone"), 1.0)
    outcomes = {trace.request: trace.outcome for trace in traces.newest(10)}
    assert {trace.request for trace in traces.newest(10) if trace.call == CALL} == {"r-1-1", "r-1-2"}
    assert outcomes == {"r-1": outcome, "r-1-1": outcome, "r-1-2": outcome, "r-2": "running"}
    assert not traces._batches
