"""What a whole mesh leaves in its traces: under a policy that predicts, for every way to end, by every id."""

import asyncio
import io
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rich.console import Console

from common.config.types import InstanceConfig, MeshConfig, TracingConfig
from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.ids import InstanceId
from services.cli.trace import show_trace, show_traces
from services.engine.runner import Runner
from services.gateway.records.trace_parts import Stage, parts
from services.gateway.records.trace_types import RequestTrace, TraceList
from services.scheduling.profiles.profile import Origin, Profile, Subject, encode_profile
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh, mesh_config
from transfer.backends.inproc import InprocBackend, InprocFaults

PROMPT = "the quick brown fox jumps over the lazy dog"
D0 = InstanceId("d0")
COSTS = InstanceCosts(
    PrefillCost(base=0.001, per_token=0.001),
    MixedStepCost(base=0.001, per_token=1.0, per_chunk_context=0.0, per_decode_context=0.0),
    DecodeStepCost(base=0.001, per_sequence=0.001, per_context=0.0),
)
"""A token costs a thousand times as much at D as at P, so that P has a part whatever the link."""


def predicting(folder: Path, prefill: int = 2, **gateway: Any) -> MeshConfig:
    profile = Profile(Subject("deterministic", "float32"), Origin.MEASURED, "a test", COSTS, {})
    file = folder / "profile.json"
    file.write_bytes(encode_profile(profile))
    config = mesh_config(prefill=prefill, **gateway)
    instances = tuple(msgspec.structs.replace(one, profile=str(file)) for one in config.instances)
    return msgspec.structs.replace(config, policy="cronus", instances=instances)


def slow(instance: InstanceConfig) -> Runner:
    return deterministic(instance, step_seconds=0.01)


async def trace_of(mesh: InProcessMesh, shown: str) -> RequestTrace:
    async with mesh.client.get(f"/traces/{shown}") as response:
        assert response.status == 200, await response.text()
        return msgspec.json.decode(await response.read(), type=RequestTrace)


async def only_trace(mesh: InProcessMesh) -> RequestTrace:
    (trace,) = mesh.gateway.traces.newest(10)
    return await trace_of(mesh, trace.request)


def in_order(*times: float | None) -> bool:
    return None not in times and list(times) == sorted(times)


async def test_a_placement_that_was_predicted(deterministic_folder: Path, tmp_path: Path) -> None:
    async with in_process_mesh(predicting(tmp_path), deterministic_folder) as mesh:
        answer = await mesh.complete(PROMPT, ignore_eos=True)
        assert answer.status == 200, answer.body
        await mesh.until_nothing_is_held()
        trace = await trace_of(mesh, answer.body["id"])

        assert (trace.policy, trace.prompt_tokens, trace.tokens) == ("cronus", len(PROMPT), 16)
        assert (trace.outcome, trace.failure) == ("finished", None)
        placement, prediction = trace.placement, trace.prediction
        assert placement is not None
        assert prediction is not None
        assert placement.header() == answer.placement
        assert [(c.prefill, c.decode) for c in placement.candidates] in (
            [("p0", "d0"), ("p1", "d0")],
            [("p1", "d0"), ("p0", "d0")],
        )
        assert placement.candidates[0].prefill == placement.prefill
        assert prediction.tokens == placement.split > 0
        assert prediction.prefill_s == pytest.approx(0.001 + 0.001 * placement.split)
        assert trace.landed is not None
        assert (trace.landed.payload_bytes, trace.landed.backend) == (placement.kv_bytes, "inproc")
        assert in_order(trace.placed_s, trace.landed.at_s, trace.first_token_s, trace.last_token_s, trace.ended_s)
        assert in_order(trace.landed.seconds, trace.landed.at_s)
        assert in_order(trace.placed_s, trace.released_s, trace.age_s)
        metrics = mesh.gateway.metrics.render().decode()
        assert "pdmesh_placement_prediction_ratio_count 1.0" in metrics
        assert mesh.gateway.metrics.registry.get_sample_value("pdmesh_placement_prediction_ratio_sum") == pytest.approx(
            prediction.first_token_s / (trace.first_token_s - trace.placed_s)
        )


async def test_the_command_explains_what_the_mesh_did(deterministic_folder: Path, tmp_path: Path) -> None:
    async with in_process_mesh(predicting(tmp_path), deterministic_folder) as mesh:
        answer = await mesh.complete(PROMPT)
        own = await mesh.complete(PROMPT, pdmesh={"split": 5})

        async def shown(request: str | None, *, as_json: bool = False) -> str:
            out = io.StringIO()
            console = Console(file=out, width=160)
            if request is None:
                await asyncio.to_thread(show_traces, mesh.gateway.url, 20, as_json=as_json, console=console)
            else:
                await asyncio.to_thread(show_trace, mesh.gateway.url, request, as_json=as_json, console=console)
            return out.getvalue()

        text = await shown(answer.body["id"])
        assert "chosen" in text
        assert "by inproc" in text
        assert "the request said its own split, 5." in await shown(own.body["id"])
        assert own.body["id"].removeprefix("cmpl-") in await shown(None)
        assert len(msgspec.json.decode(await shown(None, as_json=True), type=TraceList).traces) == 2


async def test_every_id_that_clients_see_finds_the_trace(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        chat = {"model": mesh.config.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        plain = {"model": mesh.config.model, "prompt": "hi", "max_tokens": 2}
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", plain)):
            async with mesh.client.post(path, json=body) as response:
                header, shown = response.headers["x-request-id"], (await response.json())["id"]
            assert (await trace_of(mesh, header)).request == (await trace_of(mesh, shown)).request == header
            async with mesh.client.post(path, json=body | {"stream": True}) as response:
                header = response.headers["x-request-id"]
                first = (await response.text()).partition("\n")[0].removeprefix("data: ")
            shown = msgspec.json.decode(first)["id"]
            assert (await trace_of(mesh, header)).request == (await trace_of(mesh, shown)).request == header


async def test_a_policy_that_predicts_nothing(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await mesh.complete(PROMPT)
        trace = await only_trace(mesh)
        assert (trace.policy, trace.prediction, trace.outcome) == ("fixed", None, "finished")
        assert trace.placement is not None
        assert trace.placement.split == len(PROMPT) - 1
        assert "pdmesh_placement_prediction_ratio_count 0.0" in mesh.gateway.metrics.render().decode()


async def test_an_answer_that_a_stop_string_ends_has_finished(deterministic_folder: Path) -> None:
    """The mesh alone would take it for a client that has gone: the stream is closed before its end."""
    async with in_process_mesh(mesh_config(), deterministic_folder, build=slow) as mesh:
        whole = (await mesh.complete(PROMPT, max_tokens=8)).text
        answer = await mesh.complete(PROMPT, max_tokens=500, stop=[whole[2:4]])
        assert answer.body["choices"][0]["finish_reason"] == "stop"
        trace = await trace_of(mesh, answer.body["id"])
        assert (trace.outcome, trace.failure) == ("finished", None)
        assert trace.tokens < 500


async def test_a_client_that_leaves(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder, build=slow) as mesh:
        request = asyncio.ensure_future(mesh.complete(PROMPT, max_tokens=500, ignore_eos=True))
        await mesh.until(lambda: mesh.loads()[D0].context_tokens > len(PROMPT) + 3)
        request.cancel()
        await mesh.until_nothing_is_held()
        trace = await only_trace(mesh)
        assert (trace.outcome, trace.tokens > 0) == ("cancelled", True)
        assert trace.failure is not None
        assert trace.failure.message == "the client went away"


async def test_a_hand_off_that_breaks(deterministic_folder: Path, tmp_path: Path) -> None:
    backend = InprocBackend(InprocFaults(drop_at_write=0))
    config = predicting(tmp_path, prefill=1)
    async with in_process_mesh(config, deterministic_folder, backend=backend) as mesh:
        await mesh.complete(PROMPT, pdmesh={"split": "full"})
        await mesh.until_nothing_is_held()
        trace = await only_trace(mesh)
        assert (trace.outcome, trace.landed, trace.first_token_s) == ("handoff_failed", None, None)
        assert trace.released_s is not None
        assert trace.asked_split == "full"


async def test_a_request_that_waits_too_long_and_one_that_is_refused(deterministic_folder: Path) -> None:
    config = mesh_config(prefill_slots=1, queue=1, deadline_s=1.0)
    async with in_process_mesh(config, deterministic_folder, build=slow) as mesh:

        async def ask(prompt: str) -> None:
            try:
                await mesh.complete(prompt, max_tokens=500, ignore_eos=True)
            except aiohttp.ClientError:
                pass

        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(ask(f"{number} {PROMPT}"))
        await mesh.until_nothing_is_held()
        traces = mesh.gateway.traces.newest(100)
        assert {"overloaded", "deadline_exceeded"} <= {trace.outcome for trace in traces}
        for trace in traces:
            assert trace.ended_s is not None
            assert trace.outcome != "overloaded" or (trace.placement, trace.tokens) == (None, 0)


async def test_only_the_last_requests_are_kept(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(traces=3), deterministic_folder) as mesh:
        ids = [(await mesh.complete(f"{number}", max_tokens=1)).body["id"] for number in range(5)]
        async with mesh.client.get("/traces") as response:
            body = await response.json()
        assert body["kept"] == 3
        assert [f"cmpl-{line['request']}" for line in body["traces"]] == ids[:1:-1]
        async with mesh.client.get(f"/traces/{ids[0]}") as response:
            assert response.status == 404


async def test_the_time_of_a_split_request_is_told_by_all_who_had_a_part(deterministic_folder: Path) -> None:
    config = msgspec.structs.replace(mesh_config(), split=20)
    async with in_process_mesh(config, deterministic_folder, build=slow) as mesh:
        await mesh.complete(PROMPT, ignore_eos=True)
        await mesh.until_nothing_is_held()
        trace = await only_trace(mesh)

        assert [part.stage for part in parts(trace)] == list(Stage)
        seconds = {part.stage: part.seconds for part in parts(trace)}
        assert sum(seconds.values()) == pytest.approx(trace.total_s)
        # A step takes 10 ms at each.
        assert trace.prefill_times is not None
        assert trace.prefill_times.computed_s >= 0.01
        assert trace.decode_computed_s is not None
        assert trace.decode_computed_s >= 0.01
        assert seconds[Stage.DECODE] >= 15 * 0.01
        assert trace.landed is not None
        assert 0 < trace.landed.first_byte_s <= trace.landed.seconds
        stages = 'pdmesh_request_stage_seconds_count{stage="wire"} 1.0'
        assert stages in mesh.gateway.metrics.render().decode()


async def test_each_choice_and_each_request_has_its_own_time(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await asyncio.gather(*[mesh.complete(PROMPT, ignore_eos=True, n=2, seed=seed) for seed in range(4)])
        await mesh.until_nothing_is_held()
        for trace in mesh.gateway.traces.newest(10):
            assert trace.prefill_times is not None
            assert trace.decode_computed_s is not None
            assert [part.stage for part in parts(trace)] == list(Stage)


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_collector_is_sent_one_trace_of_all_parties_under_the_clients(
    deterministic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.records.open_telemetry._LAST_WORDS_S", 20.0)
    bodies: list[bytes] = []

    async def collect(http: web.Request) -> web.Response:
        bodies.append(await http.read())
        response = web.Response()
        response.force_close()
        return response

    collector = web.Application()
    collector.router.add_post("/v1/traces", collect)
    async with TestServer(collector) as server:
        tracing = TracingConfig(otlp=str(server.make_url("/")))
        config = msgspec.structs.replace(mesh_config(), tracing=tracing, split=20)
        async with in_process_mesh(config, deterministic_folder) as mesh:
            body = {"model": config.model, "prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}
            async with mesh.client.post("/v1/completions", json=body, headers={"traceparent": PARENT}) as response:
                assert response.status == 200
    found = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    spans = [
        (resource.resource.attributes[0].value.string_value, span)
        for request in found
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id.hex() for _, span in spans} == {PARENT[3:35]}
    (root,) = (span for _, span in spans if span.name == "request")
    assert root.parent_span_id.hex() == PARENT[36:52]
    parties = {service.removeprefix("pdmesh-") for service, _ in spans}
    assert parties == {"gateway", "prefill", "wire", "decode"}
