"""Ended requests are passed on once, and not before P has spoken, unless it takes too long."""

import asyncio

import msgspec
import pytest

from common.ids import RequestId
from services.gateway.records import settling
from services.gateway.records.settling import Settling
from services.gateway.records.trace_types import RequestTrace
from tests.unit.gateway.records.test_trace_parts import TRACE, WHOLE

WAITS = msgspec.structs.replace(TRACE, request=RequestId("r-2"), released_s=None, prefill_times=None)


class Bench:
    def __init__(self) -> None:
        self.known: dict[RequestId, RequestTrace] = {}
        self.told: list[RequestTrace] = []
        self.settling = Settling(self.known.get, self.told.append)


async def test_what_p_has_let_go_of_or_never_had_is_passed_on_at_once() -> None:
    bench = Bench()
    alone = msgspec.structs.replace(WAITS, placement=WHOLE)
    refused = msgspec.structs.replace(WAITS, placement=None)
    for trace in (TRACE, alone, refused):
        bench.settling.ended(trace)
    assert bench.told == [TRACE, alone, refused]


async def test_what_p_says_meanwhile_is_passed_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PATIENCE_S", 0.0)
    bench = Bench()
    bench.settling.ended(WAITS)
    bench.settling.ended(WAITS)
    assert bench.told == []
    spoken = bench.known[WAITS.request] = msgspec.structs.replace(WAITS, released_s=3.0)
    await asyncio.sleep(0.01)
    assert bench.told == [spoken]


async def test_at_the_end_nobody_is_waited_for() -> None:
    bench = Bench()
    bench.settling.ended(WAITS)
    bench.settling.close()
    (told,) = bench.told
    assert (told.request, told.age_s) == (WAITS.request, WAITS.age_s + settling.PATIENCE_S)
    bench.settling.close()
    assert len(bench.told) == 1
