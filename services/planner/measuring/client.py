"""A running mesh, asked through its gateway's routes for operators."""

import http.client
import urllib.error
import urllib.request
from typing import Final, TypeVar

import msgspec

from common.costs.step import Step
from common.ids import InstanceId
from common.messages.operator import (
    InstanceInfo,
    InstanceList,
    MeasureAnswer,
    MeasuredShape,
    MeasureRequest,
)
from services.planner.errors import Busy, PlannerError

_TIMEOUT_S: Final = 10.0
_STEP_TIMEOUT_S: Final = 600.0
"""A long prompt on an emulated slow device, run a few times."""

T = TypeVar("T")


class MeshClient:
    """The mesh whose gateway serves at `url`, asked with the API key `key` where it takes one. Every method waits for
    its answer; PlannerError without one."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def instances(self) -> tuple[InstanceInfo, ...]:
        """Every member, in the order of joining."""
        return self._ask("/instances", InstanceList, None, _TIMEOUT_S).instances

    def measure(self, instance: InstanceId, step: Step, repeats: int) -> tuple[float, ...]:
        """Seconds of `repeats` runs of `step`. Raises Busy where the instance refuses."""
        shape = MeasuredShape(**msgspec.structs.asdict(step.shape))
        request = MeasureRequest(shape, step.is_prefill, repeats, _STEP_TIMEOUT_S)
        body = msgspec.json.encode(request)
        path = f"/instances/{instance}/measure"
        return self._ask(path, MeasureAnswer, body, _STEP_TIMEOUT_S + _TIMEOUT_S).seconds

    def _ask(self, path: str, kind: type[T], body: bytes | None, timeout_s: float) -> T:
        try:
            request = urllib.request.Request(f"{self._url}{path}", body, self._headers)
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return msgspec.json.decode(answer.read(), type=kind)
        except urllib.error.HTTPError as error:
            raise _told(error, self._url) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Malformed addresses and answers are ValueErrors.
            raise PlannerError(f"no pdmesh gateway answers at {self._url!r} ({error}); name one with --url") from error


class _Told(msgspec.Struct, frozen=True):
    message: str
    code: str | None = None


class _Envelope(msgspec.Struct, frozen=True):
    error: _Told


def _told(error: urllib.error.HTTPError, url: str) -> PlannerError:
    """What an answer with an error status says."""
    try:
        told = msgspec.json.decode(error.read(), type=_Envelope).error
    except (OSError, ValueError):
        return PlannerError(f"no pdmesh gateway answers at {url!r} ({error}); name one with --url")
    return Busy(told.message) if told.code == "measurement_refused" else PlannerError(told.message)
