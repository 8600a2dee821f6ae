"""The dashboard's page and its data route, without a browser."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.clock import ManualClock
from common.ids import Generation, InstanceId
from common.messages.control import LinkFigures, LinkMeasured, Load, Role
from common.messages.operator import InstanceInfo
from common.metrics import Metrics
from services.gateway.dashboard import history
from services.gateway.dashboard.history import MOST_SAMPLES, History
from services.gateway.dashboard.routes import DashboardRoutes, page, policy_of
from services.gateway.dashboard.source import FORGET_S, DashboardSource
from services.gateway.dashboard.types import DashboardState, LostInstance, Sample, ShownInstance, ShownLink
from services.gateway.mesh.roster import Lost
from services.scheduling.lifecycle.events import Holdings
from services.scheduling.membership.members import LossReason
from tests.unit.common.bus_fixtures import registration

P0, P1, D0, LIFE = InstanceId("p0"), InstanceId("p1"), InstanceId("d0"), Generation(2**62 + 1)
MEMBER = registration(LIFE)


def sample(number: int, tokens: int = 0) -> Sample:
    return Sample(number, 2.0 * number, 1, 2, number, 0, tokens, tokens, (number, 2 * number), (number, 2 * number))


def instance(name: InstanceId, role: Role, **changes: Any) -> ShownInstance:
    shown = ShownInstance(name, role, "cpu", str(LIFE), False, 3, 16, 1, 40, 900, 25, 100, 30, 1.25)
    return msgspec.structs.replace(shown, **changes)


STATE = DashboardState(
    life="abc",
    model="smollm2",
    policy="cronus",
    not_ready=None,
    uptime_s=12.0,
    queued=1,
    running=2,
    finished=5,
    failed=1,
    instances=(instance(P0, Role.PREFILL), instance(D0, Role.DECODE, draining=True)),
    lost=(LostInstance(P1, Role.PREFILL, "silent", 12.0),),
    links=(ShownLink(P0, D0, "shm", 12.9e9, 0.001, 5_000_000, 1),),
    every_s=2.0,
    ttft_bounds_s=(0.1,),
    tbt_bounds_s=(0.01,),
    samples=tuple(sample(number, 10 * number) for number in range(20)),
)
"""What a page may be told; the browser's tests use it too."""


class Mesh:
    """What the source asks of the mesh."""

    def __init__(self) -> None:
        self.gone: tuple[Lost, ...] = (Lost(msgspec.structs.replace(MEMBER, instance=P1), LossReason.SILENT, 100.0),)

    def instances(self) -> Sequence[InstanceInfo]:
        return (InstanceInfo(MEMBER, Load(running=2, blocks_used=3, blocks_total=10, draining=True)),)

    def lost_instances(self) -> Sequence[Lost]:
        return self.gone

    def links(self) -> Sequence[LinkMeasured]:
        figures = (LinkFigures("shm", 2e9, 0.001), LinkFigures("tcp", 1e9, 0.002))
        return (LinkMeasured(D0, LIFE, P0, LIFE, figures),)

    def holdings(self) -> Holdings:
        return Holdings(requests=4, queued=3, slots=0)

    def not_ready(self) -> str | None:
        return "no prefill instance has joined"


class Bench:
    def __init__(self) -> None:
        self.metrics, self.clock, self.mesh = Metrics(), ManualClock(100.0), Mesh()
        self.source = DashboardSource(self.mesh, self.metrics, self.clock, model="m", policy="fixed", life="now")

    def count(self) -> None:
        for seconds in (0.02, 0.2, 400.0):
            self.metrics.ttft_s.observe(seconds)
        for outcome in ("finished", "finished", "cancelled", "refused"):
            self.metrics.requests.labels(outcome).inc()
        self.metrics.output_tokens.inc(7)
        self.metrics.handoff_bytes.labels("p0", "d0", "shm").inc(500)
        self.metrics.handoff_failures.labels("p0", "d0").inc()


def test_the_state_is_read_from_the_gateways_own_records() -> None:
    bench = Bench()
    bench.count()
    bench.clock.advance(30.0)
    state = bench.source.state(-1, "")
    assert (state.queued, state.running, state.finished, state.failed, state.uptime_s) == (3, 4, 2, 2, 30.0)
    assert state.not_ready == "no prefill instance has joined"
    (shown,) = state.instances
    assert (shown.id, shown.generation, shown.draining, shown.blocks_used) == (MEMBER.instance, str(LIFE), True, 3)
    assert state.lost == (LostInstance(P1, MEMBER.role, "silent", 30.0),)
    moved = [(link.backend, link.handed_bytes, link.failures) for link in state.links]
    assert moved == [("shm", 500, 1), ("tcp", 0, 1)]


def test_a_sample_has_the_counters_as_they_stand() -> None:
    bench = Bench()
    before = bench.source.sample(0)
    bench.count()
    after = bench.source.sample(1)
    bounds = bench.source.state(-1, "").ttft_bounds_s
    assert len(after.ttft) == len(bounds) + 1
    assert (sum(before.ttft), after.ttft[-1], after.output_tokens) == (0, 3, 7)
    assert after.ttft[bounds.index(0.1)] == 1
    assert after.ttft[bounds.index(300.0)] == 2


def test_what_was_lost_long_ago_is_not_shown() -> None:
    bench = Bench()
    bench.clock.advance(FORGET_S + 1)
    assert bench.source.state(-1, "").lost == ()


def test_a_page_is_told_the_samples_that_it_lacks() -> None:
    bench = Bench()
    for _ in range(3):
        bench.source.history.take()
    assert [sample.number for sample in bench.source.state(0, "now").samples] == [1, 2]
    assert [sample.number for sample in bench.source.state(0, "an earlier gateway").samples] == [0, 1, 2]


async def test_the_history_is_bounded_and_samples_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EVERY_S", 0.0)
    kept = History(sample)
    kept.start()
    async with asyncio.timeout(5):
        while not kept.since(MOST_SAMPLES + 10):  # noqa: ASYNC110 - the history has no event
            await asyncio.sleep(0)
    await kept.close()
    assert len(kept.since(-1)) == MOST_SAMPLES


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application()
    app.add_routes(DashboardRoutes(Bench().source).routes())
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_the_page_comes_with_a_policy_for_its_own_script_alone(client: TestClient[Any, Any]) -> None:
    async with client.get("/dashboard") as response:
        text = await response.text()
        policy = response.headers["Content-Security-Policy"]
    assert text == page()
    assert policy == policy_of(text)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(re.findall(r"script-src 'sha256-[^ ']+';", policy)) == 1
    assert policy_of(text.replace("poll();", "poll() ;")) != policy


async def test_the_data_is_json_and_bad_questions_are_refused(client: TestClient[Any, Any]) -> None:
    async with client.get("/dashboard/state?since=-1&life=x") as response:
        assert msgspec.json.decode(await response.read(), type=DashboardState).model == "m"
        assert response.headers["Cache-Control"] == "no-store"
    for bad in ("", "x", "-2", "1.5", "²", "9" * 40):
        async with client.get("/dashboard/state", params={"since": bad}) as response:
            assert (response.status, (await response.json())["error"]["param"]) == (400, "since")


def test_the_page_is_small_and_asks_nobody_else() -> None:
    text = page()
    assert len(text.encode()) < 60_000
    assert re.findall(r"https?://[^\"'\s]+", text) == ["http://www.w3.org/2000/svg"]
    unsafe = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "style=", "onclick")
    assert [word for word in (*unsafe, "localStorage", "document.cookie") if word in text] == []
