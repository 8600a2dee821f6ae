"""Requests made from the document that a mesh with API keys serves, sent to it: no 500, no hang, nothing left."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance, response_schema_conformance

from services.cli.client_keys import add_client_key
from services.gateway.openai.types import ChatFields, CompletionFields
from tests.mesh.inprocess import in_process_mesh, mesh_config
from tests.mesh.test_structured_answers import roomy

EXAMPLES = 30
"""Of each operation, right and wrong."""
HANG_S = 15.0
MODEL = "smollm2"
FEW_TOKENS = {"max_tokens": 3}
PLAIN: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": MODEL, "prompt": ["a", "bc"], **FEW_TOKENS},
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "a"}], **FEW_TOKENS},
}
LENGTHS = ("max_tokens", "max_completion_tokens")
PARAMETERS = sorted({*ChatFields.__struct_fields__, *CompletionFields.__struct_fields__} - {"model", *LENGTHS})


class Attack:
    """What the document leads to, against the mesh at `url`. It blocks: not for the loop of the mesh."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=self._headers)

    def all(self) -> dict[str, set[int]]:
        """The statuses seen, by operation and whether its bodies were right."""
        seen: dict[str, set[int]] = {}
        for path, item in self._schema.raw_schema["paths"].items():
            for method, operation in item.items():
                is_open = operation.get("security") == []
                assert (self._bare(path, method) == 401) != is_open, (method, path)
                seen[f"{method} {path} right"] = self._send(path, method, GenerationMode.POSITIVE)
                if method == "post":
                    # Only a body can be wrong.
                    seen[f"{method} {path} wrong"] = self._send(path, method, GenerationMode.NEGATIVE)
        return seen

    def _bare(self, path: str, method: str) -> int:
        """The status without a key."""
        return requests.request(method, f"{self._url}{path}", timeout=HANG_S).status_code

    def _send(self, path: str, method: str, mode: GenerationMode) -> set[int]:
        seen: set[int] = set()
        cases = self._schema[path][method].as_strategy(generation_mode=mode)
        how: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}

        # Not shrunk: the failure says how to repeat it.
        @settings(max_examples=EXAMPLES, derandomize=True, database=None, phases=[Phase.generate], **how)
        @given(case=cases, rest=st.none() | st.sampled_from(PARAMETERS))
        def send(case: schemathesis.Case[Any], rest: str | None) -> None:
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body = short(case.body) if rest is None else plain(path, case.body, rest)
            response = case.call(base_url=self._url, headers=self._headers, timeout=HANG_S)
            seen.add(response.status_code)
            # A schema cannot say which parameters go together; and of events it is that of each.
            excluded: list[Any] = [positive_data_acceptance]
            if any(kind.startswith("text/event-stream") for kind in response.headers["content-type"]):
                excluded.append(response_schema_conformance)
            case.validate_response(response, excluded_checks=excluded)

        send()
        return seen


def short(body: dict[str, Any]) -> dict[str, Any]:
    """The same for an answer of few tokens."""
    return {name: value for name, value in body.items() if name not in LENGTHS} | FEW_TOKENS


def plain(path: str, body: dict[str, Any], name: str) -> dict[str, Any]:
    """A plain body with one parameter of `body`, so that some are served."""
    return PLAIN[path] | {name: body[name]} if name in body else PLAIN[path]


@pytest.mark.slow
async def test_what_the_document_leads_to_breaks_nothing(
    deterministic_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = add_client_key(tmp_path / "keys", "ann")
    config = mesh_config(api_keys=str(tmp_path / "keys"))
    async with in_process_mesh(config, deterministic_folder, build=roomy) as mesh:
        async with mesh.client.get("/openapi.json") as stranger:
            assert stranger.status == 401
        seen = await asyncio.to_thread(lambda: Attack(mesh.gateway.url, key).all())
        # No made-up name is that of the model.
        served = {name: 200 in statuses for name, statuses in seen.items() if "{id}" not in name}
        assert served == {name: name.endswith("right") for name in served}, seen
        await mesh.until_nothing_is_held()
        mesh.assert_serving()
        async with openai.AsyncOpenAI(base_url=f"{mesh.gateway.url}/v1", api_key=key, max_retries=0) as client:
            assert (await client.completions.create(model=MODEL, prompt="still here", max_tokens=2)).choices
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
