"""What an operator's tools ask about the instances: who is there, how long a step takes; and whether one drains.

Like /links these routes say much: without gateway.api_keys they are for networks where everybody may be trusted.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
from aiohttp import web

from common.costs.step import Step
from common.ids import InstanceId
from common.messages.control import StepMeasured
from common.messages.operator import DrainAnswer, InstanceInfo, InstanceList, MeasureAnswer, MeasureRequest
from services.gateway.http.admission import read_body
from services.gateway.http.responses import error_response, json_response
from services.gateway.openai.errors import ApiError, ErrorBody, invalid

_MOST_BODY: Final = 64 << 10
_BODY_S: Final = 30.0


class Operated(Protocol):
    """What these routes need of the mesh."""

    def instances(self) -> Sequence[InstanceInfo]:
        """Every member, in the order of joining."""
        ...

    async def measure(self, instance: InstanceId, step: Step, repeats: int) -> StepMeasured | None:
        """The answer of a member; None where it was lost meanwhile."""
        ...

    def drain(self, instance: InstanceId, *, draining: bool) -> None:
        """Tell a member to want nothing new, or (False) to be given requests again."""
        ...


class InstanceRoutes:
    """GET /instances and POST /instances/{id}/measure, /drain and /resume."""

    def __init__(self, mesh: Operated) -> None:
        self._mesh = mesh

    def routes(self) -> list[web.RouteDef]:
        """To be added to the application before it runs."""
        return [
            web.get("/instances", self._show),
            web.post("/instances/{id}/measure", self._measure),
            web.post("/instances/{id}/drain", self._drain),
            web.post("/instances/{id}/resume", self._resume),
        ]

    async def _show(self, _: web.Request) -> web.Response:
        return json_response(msgspec.json.encode(InstanceList(tuple(self._mesh.instances()))))

    async def _measure(self, http: web.Request) -> web.Response:
        try:
            body = await read_body(http, _MOST_BODY, _BODY_S)
            seconds = await self._measured(InstanceId(http.match_info["id"]), body)
        except ApiError as error:
            return error_response(error)
        return json_response(msgspec.json.encode(MeasureAnswer(seconds)))

    async def _drain(self, http: web.Request) -> web.Response:
        return self._tell(InstanceId(http.match_info["id"]), draining=True)

    async def _resume(self, http: web.Request) -> web.Response:
        return self._tell(InstanceId(http.match_info["id"]), draining=False)

    def _tell(self, instance: InstanceId, *, draining: bool) -> web.Response:
        try:
            self._check_member(instance)
        except ApiError as error:
            return error_response(error)
        self._mesh.drain(instance, draining=draining)
        return json_response(msgspec.json.encode(DrainAnswer(instance, draining)), status=202)

    def _check_member(self, instance: InstanceId) -> None:
        members = [info.member.instance for info in self._mesh.instances()]
        if instance not in members:
            known = ", ".join(members) or "none"
            raise invalid(f"no instance {instance!r} is in the mesh, which has {known}", "id", "unknown_instance", 404)

    async def _measured(self, instance: InstanceId, body: bytes) -> tuple[float, ...]:
        self._check_member(instance)
        try:
            request = msgspec.json.decode(body, type=MeasureRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise invalid(f"the body is not a measurement to make: {error}", code="invalid_measurement") from error
        try:
            async with asyncio.timeout(request.timeout_s):
                answer = await self._mesh.measure(instance, request.step(), request.repeats)
        except TimeoutError as error:
            reason = f"instance {instance!r} has not measured that within {request.timeout_s} s; raise timeout_s"
            raise _failed(504, "timeout", reason) from error
        if answer is None:
            raise _failed(503, "instance_lost", f"instance {instance!r} was lost while it measured")
        if answer.refusal is not None:
            raise _failed(409, "measurement_refused", f"instance {instance!r}: {answer.refusal}")
        return answer.seconds


def _failed(status: int, code: str, message: str) -> ApiError:
    return ApiError(status, ErrorBody(message, "measurement_error", code=code), is_retryable=True)
