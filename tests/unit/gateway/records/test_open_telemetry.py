"""Requests as OpenTelemetry traces, with the SDK's in-memory exporter, and with a collector that hangs."""

import itertools
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from common.config.types import TracingConfig
from common.errors import ConfigError, Failure, FailureKind
from common.ids import RequestId
from services.gateway import service
from services.gateway.records.open_telemetry import TraceExport
from services.gateway.records.trace_spans import spans
from services.gateway.records.trace_types import RequestTrace
from tests.unit.gateway.records.test_trace_parts import TRACE

NOW = 1_800_000_000.0
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"


def exported(*traces: RequestTrace, sample: float = 1.0) -> Sequence[ReadableSpan]:
    memory = InMemorySpanExporter()
    export = TraceExport(memory, sample, lambda: NOW)
    for trace in traces:
        export.settled(trace)
    export.flush()
    return memory.get_finished_spans()


def but(**changes: object) -> RequestTrace:
    return msgspec.structs.replace(TRACE, **changes)


def named(found: Sequence[ReadableSpan], name: str) -> ReadableSpan:
    (span,) = (span for span in found if span.name == name)
    return span


def test_one_trace_with_the_spans_of_every_party_under_the_right_parents() -> None:
    found = exported(TRACE)
    assert len({span.context.trace_id for span in found}) == 1
    ids = {span.context.span_id: span.name for span in found}
    parents = {span.name: ids.get(span.parent.span_id) if span.parent else None for span in found}
    assert parents == {
        "request": None,
        "gateway queue": "request",
        "gateway answer": "request",
        "prefill prefill": "request",
        "prefill wait": "prefill prefill",
        "prefill compute": "prefill prefill",
        "prefill hold KV": "prefill prefill",
        "wire hand-off": "request",
        "wire bytes move": "wire hand-off",
        "decode decode": "request",
        "decode wait": "decode decode",
        "decode compute prompt": "decode decode",
        "decode generate": "decode decode",
    }
    services = {span.resource.attributes["service.name"] for span in found}
    assert services == {"pdmesh-gateway", "pdmesh-prefill", "pdmesh-wire", "pdmesh-decode"}


def test_times_are_wall_time_and_never_run_backwards() -> None:
    found = exported(TRACE)
    arrived_ns = int((NOW - TRACE.age_s) * 1e9)
    for span, planned in zip(sorted(found, key=lambda one: one.name), sorted(spans(TRACE), key=_shown), strict=True):
        assert span.start_time == arrived_ns + round(planned.start_s * 1e9)
        assert span.end_time == arrived_ns + round(planned.stop_s * 1e9)
        assert span.end_time >= span.start_time


def _shown(span: object) -> str:
    return f"{span.party.value} {span.name}" if span.parent is not None else span.name  # type: ignore[attr-defined]


def test_the_request_says_what_it_was() -> None:
    root = named(exported(TRACE), "request")
    assert root.kind is SpanKind.SERVER
    assert root.status.status_code is StatusCode.UNSET
    assert root.attributes is not None
    for name, fact in {"pdmesh.request": "r-1", "gen_ai.usage.output_tokens": 8, "pdmesh.split": 30}.items():
        assert root.attributes[name] == fact
    compute = named(exported(TRACE), "prefill compute")
    assert compute.attributes is not None
    assert compute.attributes["pdmesh.instance"] == "p0"


@pytest.mark.parametrize(
    ("kind", "status"), [(FailureKind.DECODE_LOST, StatusCode.ERROR), (FailureKind.CANCELLED, StatusCode.UNSET)]
)
def test_a_failure_is_an_error_and_a_client_that_left_is_none(kind: FailureKind, status: StatusCode) -> None:
    failed = but(failure=Failure(kind, "d0 is gone"), outcome=kind.value, first_token_s=None, last_token_s=None)
    root = named(exported(failed), "request")
    assert root.status.status_code is status
    if status is StatusCode.ERROR:
        assert root.status.description == "decode_lost: d0 is gone"


def test_the_clients_trace_goes_on() -> None:
    root = named(exported(but(traceparent=f"{PARENT}-01")), "request")
    assert (f"{root.context.trace_id:032x}", root.parent and f"{root.parent.span_id:016x}") == (
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
    )


def batch(*, of: str = "r-1", prompts: int = 3, traceparent: str = "") -> list[RequestTrace]:
    """The traces of one call with several prompts."""
    requests = [RequestId(of), *[RequestId(f"{of}-{number}") for number in range(1, prompts)]]
    calls = [None, *[RequestId(of)] * (prompts - 1)]
    return [but(request=one, call=call, traceparent=traceparent) for one, call in zip(requests, calls, strict=True)]


@pytest.mark.parametrize(("traceparent", "parents"), [("", {None}), (f"{PARENT}-01", {0xB7AD6B7169203331})])
def test_the_prompts_of_one_call_share_a_trace_and_calls_do_not(traceparent: str, parents: set[int | None]) -> None:
    found = exported(*batch(traceparent=traceparent))
    roots = [span for span in found if span.name == "request"]
    assert [span.attributes and span.attributes["pdmesh.request"] for span in roots] == ["r-1", "r-1-1", "r-1-2"]
    assert len({span.context.trace_id for span in found}) == 1
    assert len({span.context.span_id for span in found}) == 3 * 13
    assert {span.parent and span.parent.span_id for span in roots} == parents
    if not traceparent:
        assert len({span.context.trace_id for span in exported(*batch(), *batch(of="r-2"))}) == 2


def test_the_prompts_of_one_call_are_sampled_together() -> None:
    calls = [batch(of=f"r-{number}") for number in range(50)]
    sent = Counter(span.context.trace_id for span in exported(*itertools.chain(*calls), sample=0.5))
    assert 10 < len(sent) < 40
    assert set(sent.values()) == {3 * 13}


@pytest.mark.parametrize("nonsense", ["", "00-xyz", f"{PARENT}", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "\x00"])
def test_a_trace_context_that_is_none_begins_a_new_trace(nonsense: str) -> None:
    assert named(exported(but(traceparent=nonsense)), "request").parent is None


def test_the_client_decides_whether_it_is_sampled_and_else_the_share_does() -> None:
    assert exported(but(traceparent=f"{PARENT}-00")) == ()
    assert len(exported(but(traceparent=f"{PARENT}-01"), sample=0.0)) == 13
    assert exported(TRACE, sample=0.0) == ()
    some = exported(*[but(request=RequestId(f"r-{number}")) for number in range(200)], sample=0.25)
    assert 10 < len({span.context.trace_id for span in some}) < 100
    assert len(some) == 13 * len({span.context.trace_id for span in some})


class Hanging(SpanExporter):
    """A collector that takes a batch and never answers, until `released`."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.released = threading.Event()
        self.seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.seen += len(spans)
        self.began.set()
        self.released.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.released.set()


@pytest.mark.filterwarnings("ignore")
async def test_a_collector_that_hangs_holds_up_nobody_and_costs_a_bounded_queue(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.gateway.records.open_telemetry._LAST_WORDS_S", 0.05)
    caplog.set_level("CRITICAL", "opentelemetry")
    collector = Hanging()
    export = TraceExport(collector, 1.0, lambda: NOW, queue=64)
    while not collector.began.is_set():
        export.settled(TRACE)
    # The exporter's thread hangs: if any of these waited for it, this test would not end.
    for _ in range(200):
        export.settled(TRACE)
    assert len(export._processor._batch_processor._queue) <= 64
    seen = collector.seen
    await export.close()
    assert collector.released.is_set()
    assert collector.seen <= seen + 64


def test_without_the_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "services.gateway.records.open_telemetry", None)
    assert service._export_of(TracingConfig()) is None
    with pytest.raises(ConfigError, match=r"tracing\.otlp is 'http://c:4318'.*pip install -e"):
        service._export_of(TracingConfig(otlp="http://c:4318"))


def test_off_it_costs_not_even_the_import() -> None:
    code = "import sys, services.gateway.service; sys.exit(any('opentelemetry' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("given", "sent_to"),
    [("http://c:4318", "http://c:4318/v1/traces"), ("https://c/otel/v1/traces/", "https://c/otel/v1/traces")],
)
def test_the_collectors_address_is_with_or_without_its_path(
    given: str, sent_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.gateway.records import open_telemetry

    asked: list[str] = []
    make: Callable[..., SpanExporter] = lambda endpoint: asked.append(endpoint) or InMemorySpanExporter()  # noqa: E731
    monkeypatch.setattr(open_telemetry, "OTLPSpanExporter", make)
    open_telemetry.export_to(given, 1.0, lambda: NOW)
    assert asked == [sent_to]
