"""What workers say of hand-offs, counted for each pair."""

from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId
from common.messages.control import JobFailed, KVLanded
from common.metrics import Metrics
from services.gateway.records.metering import StageMeter, WorkerMeter
from services.scheduling.placement import Placement
from tests.unit.gateway.records.test_trace_parts import TRACE

P0, P1, D0 = (InstanceId(name) for name in ("p0", "p1", "d0"))
PLACED = {RequestId("a"): Placement(P0, D0, 3, 64), RequestId("b"): Placement(P1, D0, 3, 64)}


def lines_after(*messages: KVLanded | JobFailed) -> list[str]:
    metrics = Metrics()
    meter = WorkerMeter(metrics)
    for message in messages:
        meter.heard(message, PLACED.get)
    return [line for line in metrics.render().decode().splitlines() if line.startswith("pdmesh_handoff")]


def landed(request: str, payload_bytes: int) -> KVLanded:
    return KVLanded(D0, Generation(1), RequestId(request), payload_bytes, 0.02, "shm", "nobody")


def failed(request: str, kind: FailureKind = FailureKind.HANDOFF_FAILED) -> JobFailed:
    return JobFailed(D0, Generation(1), RequestId(request), Failure(kind, "the link broke"))


def test_bytes_and_seconds_are_those_of_the_pair() -> None:
    lines = lines_after(landed("a", 100), landed("b", 10), landed("a", 5), landed("gone", 1))
    for prefill, payload_bytes in (("p0", "105.0"), ("p1", "10.0"), ("-", "1.0")):
        assert f'pdmesh_handoff_bytes_total{{backend="shm",decode="d0",prefill="{prefill}"}} {payload_bytes}' in lines
    assert 'pdmesh_handoff_seconds_count{backend="shm",decode="d0",prefill="p0"} 2.0' in lines
    assert 'pdmesh_handoff_seconds_bucket{backend="shm",decode="d0",le="0.01",prefill="p0"} 0.0' in lines


def test_a_failed_hand_off_counts_once_for_its_pair() -> None:
    lines = lines_after(failed("a"), failed("gone"), failed("b", FailureKind.ENGINE_FAILED))
    totals = [line for line in lines if line.startswith("pdmesh_handoff_failures_total")]
    assert totals == ['pdmesh_handoff_failures_total{decode="d0",prefill="p0"} 1.0']


def test_the_stages_of_a_request_that_has_ended_are_observed() -> None:
    metrics = Metrics()
    StageMeter(metrics).settled(TRACE)
    lines = metrics.render().decode().splitlines()
    assert 'pdmesh_request_stage_seconds_sum{stage="prefill"} 1.5' in lines
    assert 'pdmesh_request_stage_seconds_count{stage="decode"} 1.0' in lines
