"""GET /traces and GET /traces/{request_id} as a client asks them."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from common.clock import ManualClock
from common.ids import InstanceId, RequestId
from common.messages.sampling import SamplingParams
from services.gateway.operators.traces import TraceRoutes, request_of
from services.gateway.records.trace_types import WholeTraces
from services.gateway.records.traces import Traces
from services.gateway.stream import GenerationRequest
from services.scheduling.placement import Candidate, Placement
from services.scheduling.policies.balancer import Split

Client = TestClient[Any, Any]
CANDIDATE = Candidate(InstanceId("p0"), InstanceId("d0"), Split(2, 0.3, 0.1, 0.2, 0.6))


def with_requests(count: int, limit: int = 30) -> Traces:
    traces = Traces(limit, "cronus", ManualClock(), lambda ratio: None)
    for number in range(count):
        request = RequestId(f"r-{number}")
        traces.arrived(GenerationRequest(request, (1, 2, 3), SamplingParams(seed=1), 8))
        traces.placed(request, Placement(InstanceId("p0"), InstanceId("d0"), 2, 64, (CANDIDATE,)))
    return traces


async def served(traces: Traces) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_routes(TraceRoutes(traces).routes())
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async for client in served(with_requests(40)):
        yield client


@pytest.fixture
async def bare() -> AsyncIterator[Client]:
    async for client in served(with_requests(1, limit=0)):
        yield client


async def names(client: Client, query: str = "") -> list[str]:
    async with client.get(f"/traces{query}") as response:
        assert response.status == 200
        body = await response.json()
    assert body["kept"] == 30
    return [line["request"] for line in body["traces"]]


async def refused(client: Client, path: str) -> tuple[int, dict[str, Any]]:
    async with client.get(path) as response:
        return response.status, (await response.json())["error"]


async def test_the_newest_come_first_and_as_many_as_asked_for(client: Client) -> None:
    assert await names(client) == [f"r-{number}" for number in range(39, 19, -1)]
    assert await names(client, "?limit=2") == ["r-39", "r-38"]
    assert len(await names(client, "?limit=1000")) == 30


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1.5", "1001", "1000000000", "9" * 5000, "²"])
async def test_a_limit_that_is_none_is_refused(client: Client, limit: str) -> None:
    status, error = await refused(client, f"/traces?limit={limit}")
    assert (status, error["param"], error["type"]) == (400, "limit", "invalid_request_error")
    assert repr(limit) in error["message"]


@pytest.mark.parametrize("shown", ["r-20", "cmpl-r-20", "chatcmpl-r-20"])
async def test_every_id_that_a_client_sees_names_the_request(client: Client, shown: str) -> None:
    async with client.get(f"/traces/{shown}") as response:
        assert response.status == 200
        body = await response.json()
    assert (body["request"], body["prompt_tokens"], body["outcome"]) == ("r-20", 3, "running")
    (candidate,) = body["placement"]["candidates"]
    assert candidate["split"] == {
        "tokens": 2,
        "prefill_s": 0.3,
        "transfer_s": 0.1,
        "decode_s": 0.2,
        "first_token_s": 0.6,
    }
    assert "prompt" not in body


@pytest.mark.parametrize("shown", ["r-3", "r-999", "chatcmpl-", "cmpl-chatcmpl-r-20", "r%2F20"])
async def test_what_is_not_kept_is_a_404_in_the_usual_envelope(client: Client, shown: str) -> None:
    status, error = await refused(client, f"/traces/{shown}")
    assert (status, error["code"], error["param"]) == (404, "unknown_request", "request_id")
    assert "last 30 requests" in error["message"]


async def test_a_gateway_that_keeps_none_says_so(bare: Client) -> None:
    status, error = await refused(bare, "/traces/r-0")
    assert status == 404
    assert "gateway.traces: 0" in error["message"]
    async with bare.get("/traces") as response:
        assert await response.json() == {"kept": 0, "traces": []}


def test_an_id_loses_the_prefix_of_its_endpoint_once() -> None:
    assert request_of("chatcmpl-r-1") == request_of("cmpl-r-1") == request_of("r-1") == "r-1"
    assert request_of("cmpl-cmpl-r-1") == "cmpl-r-1"


async def test_whole_traces_are_of_one_moment(client: Client) -> None:
    async with client.get("/traces?limit=2&whole=true") as response:
        found = msgspec.json.decode(await response.read(), type=WholeTraces)
    assert [trace.request for trace in found.traces] == ["r-39", "r-38"]
    assert found.traces[0].placement is not None
    status, error = await refused(client, "/traces?whole=1")
    assert (status, error["param"]) == (400, "whole")
