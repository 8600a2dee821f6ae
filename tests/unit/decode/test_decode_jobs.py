"""Decode jobs against an engine and a sink that do what the test says: aborts at every moment of a hand-off."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.clock import ManualClock, SystemClock
from common.errors import Failure, FailureKind, GrammarRefused
from common.faults import Faults
from common.ids import Generation, InstanceId, RequestId, TransferId
from common.kv.ticket import Ticket
from common.messages.control import (
    Abort,
    DecodeBegan,
    FromWorker,
    JobFailed,
    KVLanded,
    PrefixReused,
    RunDecode,
    TokensEmitted,
)
from common.messages.sampling import SamplingParams
from services.decode.jobs import DecodeJobs
from services.engine.api import (
    BlocksReserved,
    ChoiceTokens,
    ComputingBegan,
    EngineLoad,
    Job,
    JobEnded,
    PrefixFound,
    TokensSampled,
)
from services.engine.guide import Grammar, Guide
from transfer.errors import PeerLost
from transfer.sink_session import Landed

D0, LIFE, R = InstanceId("d0"), Generation(7), RequestId("r")
LANDED = Landed(
    payload_bytes=12, scheme="inproc", casting_side="nobody", seconds=0.5, first_byte_s=0.1, last_byte_s=0.4
)
TICKET = Ticket(TransferId("t"), b"secret", Generation(1), LIFE, ())


class ScriptedEngine:
    """Notes what it is told; the test says what happens."""

    def __init__(self) -> None:
        self.submitted: list[RequestId] = []
        self.ended: list[RequestId] = []
        self.landed: list[RequestId] = []
        self.on_landed: Callable[[], object] = lambda: None

    def submit(self, job: Job) -> None:
        self.submitted.append(job.request)

    def end(self, request: RequestId) -> None:
        self.ended.append(request)

    def kv_landed(self, request: RequestId) -> None:
        self.landed.append(request)
        self.on_landed()

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0, 0, 0, 0, 0)


class ScriptedSink:
    """A take ends as the test says. Cancelled, it lets go of the blocks when `may_let_go` is set."""

    def __init__(self) -> None:
        self.takes: list[asyncio.Future[Landed]] = []
        self.may_let_go = asyncio.Event()
        self.may_let_go.set()
        self.writing = 0
        self.first_tokens: list[int] = []

    async def take(
        self, ticket: Ticket, blocks: Sequence[int], num_tokens: int, deadline_s: float, *, first_token: int
    ) -> Landed:
        self.first_tokens.append(first_token)
        take = asyncio.get_running_loop().create_future()
        self.takes.append(take)
        self.writing += 1
        try:
            return await take
        finally:
            await self.may_let_go.wait()
            self.writing -= 1

    def rejoin(self, generation: Generation) -> None:
        pass


class ScriptedGrammars:
    """A grammar is compiled when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Future[Grammar]] = {}

    async def compiled(self, text: str) -> Grammar:
        self.asked[text] = asyncio.get_running_loop().create_future()
        return await self.asked[text]


class Bench:
    def __init__(self, clock: Any = None) -> None:
        self.grammars: Any = ScriptedGrammars()
        self.engine = ScriptedEngine()
        self.sink = ScriptedSink()
        self.clock = clock or SystemClock()
        self.sent: list[FromWorker] = []
        faults = Faults(D0, None)
        self.jobs = DecodeJobs(D0, self.engine, self.sink, self.sent.append, self.clock, faults, self.grammars)  # type: ignore[arg-type]
        self.jobs.begin(LIFE)

    def run(self, ticket: Ticket | None = TICKET, grammar: str = "") -> None:
        split = 0 if ticket is None else 2
        sampling = SamplingParams(temperature=0.0, grammar=grammar)
        self.jobs.on_message(RunDecode(R, (1, 2, 3), split, ticket, sampling, 4, 1, (), 0, deadline_s=60.0))

    async def take(self) -> asyncio.Future[Landed]:
        """The engine has reserved blocks and the take is under way."""
        self.jobs.on_event(BlocksReserved(R, (0,)))
        await self.until(lambda: bool(self.sink.takes))
        return self.sink.takes[0]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - nothing here has an event
                await asyncio.sleep(0)

    async def finish(self) -> None:
        """The engine does as it was told, and nothing is left."""
        await self.until(lambda: bool(self.engine.ended))
        assert self.sink.writing == 0, "the blocks were given back while they are written"
        self.jobs.on_event(JobEnded(R))
        await self.until(lambda: len(self.jobs._tasks) == 0)
        await self.jobs.until_idle()


async def test_kv_that_has_landed_is_told_to_engine_and_gateway() -> None:
    bench = Bench()
    bench.run()
    (await bench.take()).set_result(LANDED)
    await bench.until(lambda: bench.engine.landed == [R])
    assert bench.sent == [KVLanded(D0, LIFE, R, 12, 0.5, "inproc", "nobody", first_byte_s=0.1)]
    assert bench.engine.ended == []
    bench.jobs.on_event(JobEnded(R))


async def test_an_abort_before_the_blocks_are_reserved_opens_nothing() -> None:
    bench = Bench()
    bench.run()
    bench.jobs.on_message(Abort(R))
    bench.jobs.on_event(BlocksReserved(R, (0,)))
    await bench.finish()
    assert bench.sink.takes == []
    assert bench.sent == []


async def test_an_abort_before_the_intake_has_begun() -> None:
    bench = Bench()
    bench.run()
    bench.jobs.on_event(BlocksReserved(R, (0,)))
    bench.jobs.on_message(Abort(R))
    await bench.finish()
    assert bench.sink.takes == []


async def test_an_abort_during_the_hand_off_frees_the_blocks_when_nobody_writes_them() -> None:
    bench = Bench()
    bench.sink.may_let_go.clear()
    bench.run()
    await bench.take()
    bench.jobs.on_message(Abort(R))
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.engine.ended == []
    bench.sink.may_let_go.set()
    await bench.finish()
    assert bench.sent == []


async def test_an_abort_at_the_very_end_of_the_hand_off_is_not_lost() -> None:
    bench = Bench()
    # Between the last line of the intake and what follows when it has ended.
    bench.engine.on_landed = lambda: asyncio.get_running_loop().call_soon(bench.jobs.on_message, Abort(R))
    bench.run()
    (await bench.take()).set_result(LANDED)
    await bench.finish()
    assert bench.engine.ended == [R]


async def test_an_abort_after_the_hand_off_ends_the_job() -> None:
    bench = Bench()
    bench.run()
    (await bench.take()).set_result(LANDED)
    await bench.until(lambda: len(bench.jobs._tasks) == 0)
    bench.jobs.on_message(Abort(R))
    bench.jobs.on_message(Abort(R))
    tokens = ChoiceTokens(R, 0, 0, (5,), (), None)
    bench.jobs.on_event(TokensSampled((tokens,)))
    assert not any(isinstance(message, TokensEmitted) for message in bench.sent)
    assert bench.engine.ended == [R]
    await bench.finish()


@pytest.mark.parametrize("error", [PeerLost("the connection is closed"), RuntimeError("a fault of the sink")])
async def test_a_hand_off_that_fails_ends_the_job_with_the_reason(error: Exception) -> None:
    bench = Bench()
    bench.run()
    (await bench.take()).set_exception(error)
    await bench.finish()
    (failed,) = bench.sent
    assert isinstance(failed, JobFailed)
    assert failed.failure.kind is FailureKind.HANDOFF_FAILED
    assert str(error) in failed.failure.message


async def test_what_the_engine_says_of_a_failed_job_reaches_the_gateway() -> None:
    bench = Bench()
    bench.run(ticket=None)
    failure = Failure(FailureKind.ENGINE_FAILED, "the forward pass failed")
    bench.jobs.on_event(JobEnded(R, failure))
    assert bench.sent == [JobFailed(D0, LIFE, R, failure)]
    await bench.jobs.until_idle()


@pytest.mark.parametrize("ticket", [None, TICKET])
async def test_a_life_that_is_over_takes_nothing_until_the_next_begins(ticket: Ticket | None) -> None:
    bench = Bench()
    await bench.jobs.drop_all()
    bench.run(ticket)
    assert bench.engine.submitted == []
    bench.jobs.begin(LIFE)
    bench.run(ticket)
    assert bench.engine.submitted == [R]


async def test_after_the_close_nothing_is_taken_in_any_more() -> None:
    bench = Bench()
    bench.run()
    await bench.jobs.close()
    bench.jobs.on_event(BlocksReserved(R, (0,)))
    assert len(bench.jobs._tasks) == 0
    assert bench.sink.takes == []


async def test_what_the_blocks_hold_already_is_not_asked_for() -> None:
    bench = Bench()
    bench.run()
    bench.jobs.on_event(PrefixFound(R, 1))
    bench.jobs.on_event(BlocksReserved(R, (0,), held=1))
    await bench.until(lambda: bool(bench.sink.takes))
    assert bench.sink.first_tokens == [1]
    assert bench.sent == [PrefixReused(D0, LIFE, R, 1)]
    bench.jobs.on_message(Abort(R))
    await bench.finish()


async def test_how_long_the_prompt_took_is_told_once_with_the_first_tokens_of_all_choices() -> None:
    bench = Bench(ManualClock())
    bench.run(ticket=None)
    bench.clock.advance(1.0)
    bench.jobs.on_event(ComputingBegan(R))
    bench.clock.advance(0.25)
    bench.jobs.on_event(TokensSampled(tuple(ChoiceTokens(R, choice, 0, (5,), (), None) for choice in (0, 1))))
    bench.jobs.on_event(TokensSampled((ChoiceTokens(R, 0, 1, (6,), (), None),)))
    first, second = bench.sent
    assert isinstance(first, TokensEmitted)
    assert isinstance(second, TokensEmitted)
    assert (first.began, second.began) == ((DecodeBegan(R, 0.25),), ())
    bench.jobs.on_event(JobEnded(R))


class NoGrammar(Grammar):
    def guide(self) -> Guide:
        raise NotImplementedError


async def test_the_engine_has_a_job_when_its_grammar_is_compiled() -> None:
    bench = Bench()
    bench.run(None, "start: x")
    await bench.until(lambda: bool(bench.grammars.asked))
    assert bench.engine.submitted == []
    bench.grammars.asked["start: x"].set_result(NoGrammar())
    await bench.until(lambda: bench.engine.submitted == [R])
    bench.jobs.on_event(JobEnded(R))
    await bench.jobs.until_idle()


async def test_a_grammar_that_is_refused_fails_its_request_and_the_engine_never_hears_of_it() -> None:
    bench = Bench()
    bench.run(None, "start: x")
    await bench.until(lambda: bool(bench.grammars.asked))
    bench.grammars.asked["start: x"].set_exception(GrammarRefused("x is not defined"))
    await bench.jobs.until_idle()
    (failed,) = bench.sent
    assert isinstance(failed, JobFailed)
    assert failed.failure.kind is FailureKind.INVALID_REQUEST
    assert "x is not defined" in failed.failure.message
    assert bench.engine.submitted == bench.engine.ended == []


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_job_aborted_while_its_grammar_is_compiled_leaves_nothing(is_late: bool) -> None:
    bench = Bench()
    bench.run(None, "start: x")
    await bench.until(lambda: bool(bench.grammars.asked))
    if is_late:
        bench.grammars.asked["start: x"].set_result(NoGrammar())
    bench.jobs.on_message(Abort(R))
    await bench.until(lambda: len(bench.jobs._tasks) == 0)
    await bench.jobs.until_idle()
    assert bench.sent == []
    assert bench.engine.submitted == bench.engine.ended == []
