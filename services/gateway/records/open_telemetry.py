"""Requests as OpenTelemetry traces: all spans of a request are made at its end, from its trace at the gateway.

docs/decisions/0019-tracing.md says why the gateway speaks for the other parties. Needs the extra `tracing`.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OpenSpan
from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from common.errors import FailureKind
from common.ids import RequestId
from services.gateway.records.trace_spans import Party, Span, spans
from services.gateway.records.trace_types import RequestTrace

QUEUE_SPANS: Final = 4096
"""Spans that wait for the collector, at most, some 2 kB each; while it is away the oldest are dropped."""
_BATCH_SPANS: Final = 512
_EVERY_MS: Final = 2000
_LAST_WORDS_S: Final = 2.0
"""How long a collector that does not answer may hold up the end of the gateway."""
_NAMES: Final = {"prompt_tokens": "gen_ai.usage.input_tokens", "output_tokens": "gen_ai.usage.output_tokens"}
"""OpenTelemetry's own names, where it has one; the others are `pdmesh.NAME`."""


class _CallIds(RandomIdGenerator):
    """A trace that begins here is named after `call`, the call whose request is being sent: its prompts share it."""

    call = RequestId("")

    def generate_trace_id(self) -> int:
        """128 bits, as evenly spread as random ones: the sampler compares them with its share."""
        return int.from_bytes(hashlib.blake2b(self.call.encode(), digest_size=16).digest())


class TraceExport:
    """Sends requests to a collector, from a thread of its own: no call here waits for anybody but `close`.

    `sample` is the share of requests that is sent; one whose client sent a trace context is sent as that says.
    `unix_time` gives wall time in seconds. One resource for each party, so that tools show them as services.
    """

    def __init__(
        self, exporter: SpanExporter, sample: float, unix_time: Callable[[], float], *, queue: int = QUEUE_SPANS
    ) -> None:
        self._unix_time = unix_time
        self._exporter = exporter
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=queue,
            schedule_delay_millis=_EVERY_MS,
            max_export_batch_size=min(queue, _BATCH_SPANS),
        )
        self._ids = _CallIds()
        sampler = ParentBased(TraceIdRatioBased(sample))
        self._tracers = {party: self._tracer(party, sampler) for party in Party}
        self._propagator = TraceContextTextMapPropagator()

    def _tracer(self, party: Party, sampler: ParentBased) -> Tracer:
        resource = Resource({"service.name": f"pdmesh-{party.value}", "service.namespace": "pdmesh"})
        provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(self._processor)
        return provider.get_tracer("pdmesh")

    def settled(self, trace: RequestTrace) -> None:
        """A request has ended: hand its spans to the thread, unless it is not sampled."""
        arrived_ns = _nanoseconds(self._unix_time() - trace.age_s)
        self._ids.call = trace.call or trace.request
        context = self._propagator.extract({"traceparent": trace.traceparent}, Context())
        opened: list[tuple[OpenSpan, Span]] = []
        for span in spans(trace):
            parent = context if span.parent is None else set_span_in_context(opened[span.parent][0], Context())
            opened.append((self._open(span, parent, arrived_ns), span))
            if not opened[0][0].is_recording():
                return
        if trace.failure is not None and trace.failure.kind is not FailureKind.CANCELLED:
            opened[0][0].set_status(StatusCode.ERROR, f"{trace.outcome}: {trace.failure.message}")
        for one, span in opened:
            one.end(arrived_ns + _nanoseconds(span.stop_s))

    def _open(self, span: Span, parent: Context, arrived_ns: int) -> OpenSpan:
        attributes = {_NAMES.get(name, f"pdmesh.{name}"): fact for name, fact in span.facts.items()}
        if span.where:
            attributes["pdmesh.instance"] = span.where
        return self._tracers[span.party].start_span(
            f"{span.party.value} {span.name}" if span.parent is not None else span.name,
            context=parent,
            kind=SpanKind.SERVER if span.parent is None else SpanKind.INTERNAL,
            attributes=attributes,
            start_time=arrived_ns + _nanoseconds(span.start_s),
        )

    def flush(self) -> None:
        """Wait until the exporter has had everything; for tests."""
        self._processor.force_flush()

    async def close(self) -> None:
        """Send what waits, for _LAST_WORDS_S at most."""
        # A daemon, so that a collector that never answers does not keep the process.
        thread = threading.Thread(target=self._processor.shutdown, name="traces-end", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _LAST_WORDS_S)
        self._exporter.shutdown()


def export_to(otlp: str, sample: float, unix_time: Callable[[], float]) -> TraceExport:
    """To the OTLP/HTTP collector at `otlp`, an address with or without the path /v1/traces."""
    base = otlp.rstrip("/")
    endpoint = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
    return TraceExport(OTLPSpanExporter(endpoint=endpoint), sample, unix_time)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
