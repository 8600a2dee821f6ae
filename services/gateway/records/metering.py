"""What the gateway counts: its requests as the HTTP side reports them, its instances as they report themselves."""

from collections.abc import Callable
from typing import Final

from common.errors import Failure, FailureKind
from common.ids import InstanceId, RequestId
from common.messages.control import FromWorker, JobFailed, KVLanded, LinkMeasured
from common.metrics import Metrics
from services.gateway.openai.types import Usage
from services.gateway.records.trace_parts import Stage, parts
from services.gateway.records.trace_types import RequestTrace
from services.scheduling.membership.members import LoadReported
from services.scheduling.placement import Placement

_NOBODY: Final = "-"
"""In place of a prefill instance: the client went away in that moment, or it was a question of the gateway itself."""


class MeteringObserver:
    """Writes what the HTTP side tells into the metrics. See Observer."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._finished = metrics.requests.labels("finished")

    def refused(self, endpoint: str, status: int) -> None:  # noqa: ARG002 - part of the Observer protocol
        """See Observer."""
        self._metrics.requests.labels("refused").inc()

    def request_started(self, request: RequestId, endpoint: str, prompt_tokens: int) -> None:  # noqa: ARG002
        """See Observer."""
        self._metrics.prompt_tokens.inc(prompt_tokens)

    def first_token(self, request: RequestId, seconds: float) -> None:  # noqa: ARG002
        """See Observer."""
        self._metrics.ttft_s.observe(seconds)

    def token(self, request: RequestId, count: int, gap_s: float | None) -> None:  # noqa: ARG002
        """See Observer."""
        self._metrics.output_tokens.inc(count)
        if gap_s is not None:
            self._metrics.tbt_s.observe(gap_s)

    def finished(self, request: RequestId, usage: Usage, seconds: float) -> None:  # noqa: ARG002
        """See Observer."""
        self._finished.inc()
        self._metrics.cached_tokens.inc(usage.prompt_tokens_details.cached_tokens)
        self._metrics.e2e_s.observe(seconds)

    def failed(self, request: RequestId, failure: Failure, seconds: float) -> None:  # noqa: ARG002
        """See Observer."""
        self._metrics.requests.labels(failure.kind.value).inc()
        self._metrics.e2e_s.observe(seconds)


class StageMeter:
    """Writes where the time of requests went into the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        # To look a label up costs as much as to count.
        self._stages = {stage: metrics.stage_s.labels(stage.value) for stage in Stage}

    def settled(self, trace: RequestTrace) -> None:
        """A request has ended."""
        for part in parts(trace):
            self._stages[part.stage].observe(part.seconds)


class WorkerMeter:
    """Writes what workers say into the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def heard(self, message: FromWorker, placed: Callable[[RequestId], Placement | None]) -> None:
        """A worker's message, before anything is decided on it; `placed` knows where requests in flight are."""
        match message:
            case KVLanded(instance=instance, request=request, backend=backend):
                placement = placed(request)
                prefill = (placement and placement.prefill) or _NOBODY
                self._metrics.handoff_bytes.labels(prefill, instance, backend).inc(message.payload_bytes)
                self._metrics.handoff_s.labels(prefill, instance, backend).observe(message.seconds)
            case JobFailed(request=request, failure=Failure(kind=FailureKind.HANDOFF_FAILED)):
                # What the other side says of the same hand-off comes when the request has ended.
                if (placement := placed(request)) is not None:
                    self._metrics.handoff_failures.labels(placement.prefill or _NOBODY, placement.decode).inc()
            case _:
                pass

    def load_reported(self, report: LoadReported) -> None:
        """What a member holds."""
        self._metrics.load_reported(report.instance, report.load)

    def link_measured(self, message: LinkMeasured) -> None:
        """A decode instance has met a prefill instance."""
        for figures in message.figures:
            self._metrics.link_measured(message.peer, message.instance, figures)
        self._metrics.link_fallbacks.inc(len(message.failed))

    def lost(self, instance: InstanceId) -> None:
        """The instance is no member any more."""
        self._metrics.instance_lost(instance)
