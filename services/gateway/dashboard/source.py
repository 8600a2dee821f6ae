"""What the dashboard shows, read from the gateway's own records: the mesh, the metrics and the clock."""

from collections.abc import Sequence
from typing import Final, Protocol

from prometheus_client import Counter, Histogram

from common.clock import Clock
from common.messages.control import LinkMeasured
from common.messages.operator import InstanceInfo
from common.metrics import Metrics
from services.gateway.dashboard.history import EVERY_S, History
from services.gateway.dashboard.types import DashboardState, LostInstance, Sample, ShownLink, shown
from services.gateway.mesh.roster import Lost
from services.scheduling.lifecycle.events import Holdings

FORGET_S: Final = 600.0
"""An instance that was lost so long ago is not shown any more."""


class Watched(Protocol):
    """What is needed of the mesh."""

    def instances(self) -> Sequence[InstanceInfo]:
        """Every member."""
        ...

    def lost_instances(self) -> Sequence[Lost]:
        """Those that were members."""
        ...

    def links(self) -> Sequence[LinkMeasured]:
        """What the self-tests measured."""
        ...

    def holdings(self) -> Holdings:
        """What the gateway holds for requests."""
        ...

    def not_ready(self) -> str | None:
        """Why no request can be served now."""
        ...


class DashboardSource:
    """Everything the page asks for. `life` tells one life of the gateway from another."""

    def __init__(self, mesh: Watched, metrics: Metrics, clock: Clock, *, model: str, policy: str, life: str) -> None:
        self._mesh = mesh
        self._metrics = metrics
        self._clock = clock
        self._model = model
        self._policy = policy
        self._life = life
        self._started_at = clock.now()
        self.history = History(self.sample)

    def sample(self, number: int) -> Sample:
        """The counters now."""
        metrics, holdings = self._metrics, self._mesh.holdings()
        outcomes = _by_labels(metrics.requests, "outcome")
        finished = outcomes.pop(("finished",), 0.0)
        return Sample(
            number=number,
            at_s=self._clock.now() - self._started_at,
            queued=holdings.queued,
            running=holdings.requests,
            finished=int(finished),
            failed=int(sum(outcomes.values())),
            output_tokens=int(_total(metrics.output_tokens)),
            prompt_tokens=int(_total(metrics.prompt_tokens)),
            ttft=tuple(int(count) for _, count in _buckets(metrics.ttft_s)),
            tbt=tuple(int(count) for _, count in _buckets(metrics.tbt_s)),
        )

    def state(self, since: int, life: str) -> DashboardState:
        """All there is to show to a page that has the samples up to number `since` of the gateway's life `life`."""
        now, now_s = self.sample(-1), self._clock.now()
        return DashboardState(
            life=self._life,
            model=self._model,
            policy=self._policy,
            not_ready=self._mesh.not_ready(),
            uptime_s=now.at_s,
            queued=now.queued,
            running=now.running,
            finished=now.finished,
            failed=now.failed,
            instances=tuple(map(shown, self._mesh.instances())),
            lost=tuple(
                _shown_lost(lost, now_s - lost.at) for lost in self._mesh.lost_instances() if now_s - lost.at < FORGET_S
            ),
            links=tuple(self._links()),
            every_s=EVERY_S,
            ttft_bounds_s=_bounds(self._metrics.ttft_s),
            tbt_bounds_s=_bounds(self._metrics.tbt_s),
            samples=tuple(self.history.since(since if life == self._life else -1)),
        )

    def _links(self) -> list[ShownLink]:
        moved = _by_labels(self._metrics.handoff_bytes, "prefill", "decode", "backend")
        failures = _by_labels(self._metrics.handoff_failures, "prefill", "decode")
        return [
            ShownLink(
                prefill=link.peer,
                decode=link.instance,
                backend=figures.backend,
                bytes_per_s=figures.bytes_per_s,
                round_trip_s=figures.round_trip_s,
                handed_bytes=int(moved.get((link.peer, link.instance, figures.backend), 0)),
                failures=int(failures.get((link.peer, link.instance), 0)),
            )
            for link in self._mesh.links()
            for figures in link.figures
        ]


def _shown_lost(lost: Lost, age_s: float) -> LostInstance:
    return LostInstance(lost.member.instance, lost.member.role, lost.reason.value, age_s)


def _by_labels(counter: Counter, *labels: str) -> dict[tuple[str, ...], float]:
    """The values of a counter by the values of its labels."""
    (family,) = counter.collect()
    totals = (sample for sample in family.samples if sample.name.endswith("_total"))
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in totals}


def _total(counter: Counter) -> float:
    return sum(_by_labels(counter).values())


def _buckets(histogram: Histogram) -> list[tuple[float, float]]:
    """Upper bound and cumulative count of each bucket; the last bound is infinite."""
    (family,) = histogram.collect()
    return [(float(one.labels["le"]), one.value) for one in family.samples if one.name.endswith("_bucket")]


def _bounds(histogram: Histogram) -> tuple[float, ...]:
    """Without the last bucket's, which JSON has no number for."""
    return tuple(bound for bound, _ in _buckets(histogram)[:-1])
