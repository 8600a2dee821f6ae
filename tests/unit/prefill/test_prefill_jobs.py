"""Prefill jobs against an engine and a source that do what the test says: every way in which a job can end."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.clock import ManualClock, SystemClock
from common.errors import Failure, FailureKind
from common.faults import Faults
from common.ids import Generation, InstanceId, RequestId, TransferId
from common.kv.intervals import Interval
from common.kv.ownership import Ended, TakerAccepted, TakerFailed, Withdrawn
from common.kv.ticket import Ticket
from common.messages.control import Abort, FromWorker, JobFailed, PrefillReleased, PrefillTimes, RunPrefill
from services.engine.api import BlocksReserved, ComputingBegan, Job, JobEnded, PrefillComputed, PrefillFailed
from services.prefill.jobs import PrefillJobs
from transfer.errors import RefusalReason, Refused
from transfer.offer import Offer

P0, LIFE, R = InstanceId("p0"), Generation(7), RequestId("r")
RELEASED = PrefillReleased(P0, LIFE, R)


class ScriptedEngine:
    """Notes what it is told; the test says what happens."""

    def __init__(self) -> None:
        self.submitted: list[RequestId] = []
        self.ended: list[RequestId] = []

    def submit(self, job: Job) -> None:
        self.submitted.append(job.request)

    def end(self, request: RequestId) -> None:
        self.ended.append(request)


class ScriptedSource:
    """Makes real offers, or raises `refusal`."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.offers: list[Offer] = []

    def offer(self, ticket: Ticket, blocks: Sequence[int], num_tokens: int, deadline_s: float) -> Offer:
        if self.refusal is not None:
            raise self.refusal
        offer = Offer(ticket, blocks, num_tokens, Interval(0, 2), deadline_s, lambda _: None)
        self.offers.append(offer)
        return offer

    def refuse_all(self, generation: Generation) -> None:
        pass


class Bench:
    def __init__(self, clock: Any = None) -> None:
        self.engine = ScriptedEngine()
        self.source = ScriptedSource()
        self.clock = clock or SystemClock()
        self.sent: list[FromWorker] = []
        self.jobs = PrefillJobs(P0, self.engine, self.source, self.sent.append, self.clock, Faults(P0, None))  # type: ignore[arg-type]
        self.jobs.begin(LIFE)

    def run(self, generation: Generation = LIFE) -> None:
        ticket = Ticket(TransferId("t"), b"secret", generation, Generation(1), ())
        self.jobs.on_message(RunPrefill(R, (1, 2, 3), ticket, deadline_s=60.0))

    def reserve(self) -> None:
        self.jobs.on_event(BlocksReserved(R, (0,)))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - nothing here has an event
                await asyncio.sleep(0)

    async def finish(self) -> None:
        """The engine does as it was told, and nothing is left."""
        await self.until(lambda: bool(self.engine.ended))
        self.jobs.on_event(JobEnded(R))
        await self.until(lambda: len(self.jobs._tasks) == 0)
        await self.jobs.until_idle()


@pytest.mark.parametrize(
    "refusal", [Refused(RefusalReason.ALREADY_TAKEN, "offered before", "transfer"), ValueError("3 tokens, 0 blocks")]
)
async def test_blocks_that_cannot_be_offered_fail_the_job_and_are_freed(refusal: Exception) -> None:
    bench = Bench()
    bench.source.refusal = refusal
    bench.run()
    bench.reserve()
    assert bench.engine.ended == [R]
    await bench.finish()
    failed, released = bench.sent
    assert isinstance(failed, JobFailed)
    assert failed.failure.kind is FailureKind.HANDOFF_FAILED
    assert str(refusal) in failed.failure.message
    assert released == RELEASED


async def test_an_abort_before_the_blocks_are_reserved_offers_nothing() -> None:
    bench = Bench()
    bench.run()
    bench.jobs.on_message(Abort(R))
    bench.reserve()
    assert bench.source.offers == []
    assert bench.engine.ended == [R]
    await bench.finish()
    assert bench.sent == [RELEASED]


async def test_an_abort_frees_the_blocks_only_when_the_offer_has_ended() -> None:
    bench = Bench()
    bench.run()
    bench.reserve()
    (offer,) = bench.source.offers
    bench.jobs.on_message(Abort(R))
    assert bench.engine.ended == [], "freed before the offer said that nobody reads"
    await bench.finish()
    assert isinstance(await offer.ended(), Withdrawn)
    assert bench.sent == [RELEASED]


async def test_a_forward_that_fails_is_reported_once_nobody_reads() -> None:
    bench = Bench()
    bench.run()
    bench.reserve()
    failure = Failure(FailureKind.ENGINE_FAILED, "the forward pass failed")
    bench.jobs.on_event(PrefillFailed(R, failure))
    assert bench.sent == []
    await bench.finish()
    assert bench.sent == [JobFailed(P0, LIFE, R, failure), RELEASED]


async def test_a_taker_that_fails_before_the_prefill_is_computed() -> None:
    bench = Bench()
    bench.run()
    bench.reserve()
    (offer,) = bench.source.offers
    offer.apply(TakerAccepted())
    offer.apply(Ended(TakerFailed("gone")))
    await bench.until(lambda: bench.engine.ended == [R])
    bench.jobs.on_event(PrefillComputed(R))
    await bench.finish()
    assert [type(message) for message in bench.sent] == [PrefillReleased]


async def test_where_the_time_went_is_told_with_the_last_word() -> None:
    bench = Bench(ManualClock(100.0))
    bench.run()
    bench.clock.advance(0.5)
    bench.reserve()
    bench.clock.advance(0.25)  # another prompt, which came first
    bench.jobs.on_event(ComputingBegan(R))
    bench.clock.advance(2.0)
    bench.jobs.on_event(PrefillComputed(R))
    bench.clock.advance(0.125)
    bench.jobs.on_message(Abort(R))
    await bench.finish()
    assert bench.sent == [PrefillReleased(P0, LIFE, R, PrefillTimes(0.75, 2.0, 0.125))]


async def test_a_prompt_that_was_all_there_took_no_computing() -> None:
    bench = Bench(ManualClock())
    bench.run()
    bench.clock.advance(0.5)
    bench.reserve()
    bench.jobs.on_event(PrefillComputed(R))
    bench.jobs.on_message(Abort(R))
    await bench.finish()
    assert bench.sent == [PrefillReleased(P0, LIFE, R, PrefillTimes(0.5, 0.0, 0.0))]


async def test_a_job_the_engine_refuses_is_failed_and_released() -> None:
    bench = Bench()
    bench.run()
    failure = Failure(FailureKind.INVALID_REQUEST, "3 tokens; the KV memory of this instance holds 2")
    bench.jobs.on_event(JobEnded(R, failure))
    assert bench.sent == [JobFailed(P0, LIFE, R, failure), RELEASED]
    await bench.jobs.until_idle()


async def test_the_same_job_twice_runs_once() -> None:
    bench = Bench()
    bench.run()
    bench.run()
    assert bench.engine.submitted == [R]
    bench.jobs.on_event(JobEnded(R))


async def test_a_life_that_is_over_takes_nothing_until_the_next_begins() -> None:
    bench = Bench()
    await bench.jobs.drop_all()
    bench.run()
    assert bench.engine.submitted == []
    bench.jobs.begin(Generation(8))
    bench.run()
    assert bench.engine.submitted == [], "a ticket of an old life"
    bench.run(Generation(8))
    assert bench.engine.submitted == [R]


async def test_after_the_close_nothing_is_offered_any_more() -> None:
    bench = Bench()
    bench.run()
    await bench.jobs.close()
    bench.reserve()
    assert bench.source.offers == [], "the source is closing: nobody would ever withdraw it"
    assert len(bench.jobs._tasks) == 0
