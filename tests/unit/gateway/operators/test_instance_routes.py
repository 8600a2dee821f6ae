"""GET /instances and POST /instances/{id}/measure over a mesh that answers as the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.clock import ManualClock
from common.costs.shape import StepShape
from common.costs.step import Step
from common.ids import Generation, InstanceId
from common.messages.control import Load, MeasureStep, Register, StepMeasured, ToWorker
from common.messages.operator import InstanceInfo, InstanceList, MeasureAnswer
from services.gateway.mesh.measurements import Measurements
from services.gateway.mesh.roster import MOST_LOST, Lost, Roster
from services.gateway.operators.instances import InstanceRoutes
from services.scheduling.membership.members import LoadReported, LossReason, MemberJoined, MemberLost
from tests.unit.common.bus_fixtures import registration

D0, LIFE = InstanceId("d0"), Generation(5)
MEMBER = registration(LIFE)
LOAD = Load(running=3, cost_factor=1.5)


def answered(message: MeasureStep, seconds: tuple[float, ...] = (), refusal: str | None = None) -> StepMeasured:
    return StepMeasured(D0, LIFE, message.measure, seconds, refusal)


class Bench:
    """The routes over the real records of the gateway; `asked` holds what was sent to the instance."""

    def __init__(self) -> None:
        self.roster = Roster(ManualClock())
        self.measurements = Measurements(self._send)
        self.asked: list[MeasureStep] = []
        self.on_asked: Callable[[MeasureStep], None] = lambda message: None
        self.measure = self.measurements.measure
        self.instances = self.roster.instances
        self.roster.heard(MemberJoined(MEMBER))

    def _send(self, instance: InstanceId, message: ToWorker) -> None:
        assert instance == D0
        assert isinstance(message, MeasureStep)
        self.asked.append(message)
        self.on_asked(message)

    async def post(self, body: Any, instance: str = "d0") -> tuple[int, bytes]:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        async with self.client.post(f"/instances/{instance}/measure", data=data) as response:
            return response.status, await response.read()

    async def refused(self, body: Any, instance: str = "d0") -> tuple[int, str, str]:
        status, answer = await self.post(body, instance)
        error = msgspec.json.decode(answer)["error"]
        return status, error["code"], error["message"]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    app = web.Application()
    app.add_routes(InstanceRoutes(bench).routes())
    async with TestClient(TestServer(app)) as bench.client:
        yield bench
    assert bench.measurements._pending == {}


async def test_members_are_shown_with_what_they_registered_and_hold(bench: Bench) -> None:
    bench.roster.heard(LoadReported(D0, LIFE, LOAD))
    async with bench.client.get("/instances") as response:
        assert response.content_type == "application/json"
        shown = msgspec.json.decode(await response.read(), type=InstanceList)
    assert shown.instances == (InstanceInfo(MEMBER, LOAD),)


async def test_a_step_is_measured_by_the_instance_named(bench: Bench) -> None:
    bench.on_asked = lambda message: bench.measurements.measured(answered(message, (0.5, 0.25)))
    shape = {"chunk_tokens": 8, "chunk_context": 4, "decodes": 2, "decode_context": 10}
    status, body = await bench.post({"shape": shape, "repeats": 2})
    assert status == 200
    assert msgspec.json.decode(body, type=MeasureAnswer).seconds == (0.5, 0.25)
    (asked,) = bench.asked
    assert (asked.shape, asked.is_prefill, asked.repeats) == (StepShape(8, 4, 2, 10), False, 2)


async def test_a_refusal_is_409_with_its_reason(bench: Bench) -> None:
    bench.on_asked = lambda message: bench.measurements.measured(answered(message, refusal="it serves 3 requests"))
    status, code, message = await bench.refused({"shape": {"chunk_tokens": 8}, "is_prefill": True})
    assert (status, code) == (409, "measurement_refused")
    assert "'d0': it serves 3 requests" in message


async def test_an_unknown_instance_is_404_and_names_those_there_are(bench: Bench) -> None:
    status, code, message = await bench.refused({"shape": {}}, "d9")
    assert (status, code) == (404, "unknown_instance")
    assert "'d9'" in message
    assert "d0" in message
    assert bench.asked == []


async def test_silence_is_504(bench: Bench) -> None:
    status, code, message = await bench.refused({"shape": {"decodes": 1}, "timeout_s": 0.01})
    assert (status, code) == (504, "timeout")
    assert "raise timeout_s" in message
    # The answer that comes too late is nobody's.
    bench.measurements.measured(answered(bench.asked[0], (1.0,)))


async def test_an_instance_that_is_lost_meanwhile_is_503(bench: Bench) -> None:
    bench.on_asked = lambda message: bench.measurements.lost(D0)
    status, code, _ = await bench.refused({"shape": {"decodes": 1}})
    assert (status, code) == (503, "instance_lost")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        {},
        {"shape": {"decodes": -1}},
        {"shape": {"decodes": 1 << 40}},
        {"shape": {"decode": 1}},
        {"shape": {"decodes": 1}, "repeats": 0},
        {"shape": {"decodes": 1}, "repeats": 101},
        {"shape": {"decodes": 1}, "timeout_s": 0},
        {"shape": {"decodes": 1}, "timeouts": 1},
        b'{"\xff": 1}',
        b'{"shape": "\xff"}',
        b'{"shape": ' + b"[" * 30_000,
    ],
)
async def test_what_is_no_measurement_is_400(bench: Bench, body: Any) -> None:
    status, code, _ = await bench.refused(body)
    assert (status, code) == (400, "invalid_measurement")
    assert bench.asked == []


async def test_a_body_that_cannot_be_read_is_400(bench: Bench) -> None:
    headers = {"Content-Encoding": "gzip"}
    async with bench.client.post("/instances/d0/measure", data=b"no gzip", headers=headers) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["type"] == "invalid_request_error"
    assert "cannot be read" in error["message"]


async def test_answers_find_who_asked_and_a_stranger_answers_nobody() -> None:
    sent: list[MeasureStep] = []
    measurements = Measurements(lambda instance, message: sent.append(message))  # type: ignore[arg-type]
    step = Step(StepShape(decodes=1))
    first = asyncio.ensure_future(measurements.measure(D0, step, 1))
    second = asyncio.ensure_future(measurements.measure(InstanceId("d1"), step, 1))
    await asyncio.sleep(0)
    measurements.measured(StepMeasured(InstanceId("d1"), LIFE, sent[0].measure, (9.0,)))
    measurements.measured(answered(sent[0], (0.1,)))
    measurements.measured(answered(sent[0], (0.2,)))
    measurements.lost(InstanceId("d1"))
    assert (await first) == answered(sent[0], (0.1,))
    assert (await second) is None
    given_up = asyncio.ensure_future(measurements.measure(D0, step, 1))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert measurements._pending == {}


def test_the_roster_follows_the_membership() -> None:
    clock = ManualClock(5.0)
    roster = Roster(clock)
    other: Register = msgspec.structs.replace(MEMBER, instance=InstanceId("d1"))
    roster.heard(MemberJoined(MEMBER))
    roster.heard(MemberJoined(other))
    roster.heard(LoadReported(D0, LIFE, LOAD))
    assert roster.instances() == (InstanceInfo(MEMBER, LOAD), InstanceInfo(other, Load()))
    roster.heard(MemberLost(D0, LIFE, LossReason.SILENT))
    roster.heard(LoadReported(D0, LIFE, LOAD))
    assert roster.instances() == (InstanceInfo(other, Load()),)
    assert roster.lost() == (Lost(MEMBER, LossReason.SILENT, 5.0),)
    roster.heard(MemberJoined(MEMBER))
    assert roster.lost() == ()


def test_of_the_lost_only_the_last_are_remembered() -> None:
    roster = Roster(ManualClock())
    names = [InstanceId(f"d{number}") for number in range(MOST_LOST + 2)]
    for name in names:
        roster.heard(MemberJoined(msgspec.structs.replace(MEMBER, instance=name)))
        roster.heard(MemberLost(name, LIFE, LossReason.LEFT))
    assert [lost.member.instance for lost in roster.lost()] == names[2:]
