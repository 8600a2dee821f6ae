"""`pdmesh status`, `drain`, `resume` and `chat` against a running mesh."""

import asyncio
import io
import json
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from common.config.types import InstanceConfig
from common.ids import InstanceId
from services.cli.chat import ChatFailed, ChatSettings, Conversation, run_chat, served_model
from services.cli.draining import NotDrained, drain, resume
from services.cli.gateway_client import GatewayRefused, NoMesh
from services.cli.status import show_status, watch_status
from services.engine.runner import Runner
from services.gateway.stream import GenerationRequest, RequestStream
from services.text.chat_template import ChatTemplate
from services.text.tokenizer import Tokenizer
from tests.mesh.inprocess import InProcessMesh, deterministic, in_process_mesh, mesh_config
from tests.mesh.turnstiles import MANY, stepwise

D0, D1 = InstanceId("d0"), InstanceId("d1")


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, io.StringIO)
    return shown.file.getvalue()


async def test_status_shows_every_instance(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(decode=2), deterministic_folder) as mesh:
        await mesh.until_all_are_members()
        shown, as_json = console(), console()
        assert await asyncio.to_thread(show_status, mesh.gateway.url, as_json=False, console=shown)
        lines = text_of(shown).splitlines()
        assert lines[0] == "ready"
        for name in ("p0", "d0", "d1"):
            (line,) = [line for line in lines if f" {name} " in line]
            assert "serving" in line
        await asyncio.to_thread(show_status, mesh.gateway.url, as_json=True, console=as_json)
        told = json.loads(text_of(as_json))
        assert told["ready"]["status"] == "ready"
        # In the order in which they joined, which is any.
        assert sorted(info["member"]["instance"] for info in told["instances"]) == ["d0", "d1", "p0"]
        watched = console()
        await asyncio.to_thread(watch_status, mesh.gateway.url, watched, 1)
        assert "steps/s" in text_of(watched)


async def test_status_of_a_mesh_that_is_not_ready(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        await mesh.stop_worker(D0)
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is not None)
        shown = console()
        assert not await asyncio.to_thread(show_status, mesh.gateway.url, as_json=False, console=shown)
        assert text_of(shown).startswith("not ready: no decode instance is in the mesh")


def test_where_no_mesh_is_the_commands_say_so() -> None:
    for ask in (
        lambda: show_status("http://127.0.0.1:9", as_json=False, console=console()),
        lambda: drain("http://127.0.0.1:9", "d0", None, console()),
        lambda: served_model("http://127.0.0.1:9"),
    ):
        with pytest.raises(NoMesh, match="name one with --url"):
            ask()


async def places(mesh: InProcessMesh, count: int) -> set[str]:
    answers = await asyncio.gather(*(mesh.complete(f"prompt {n}", max_tokens=2) for n in range(count)))
    assert {answer.status for answer in answers} == {200}
    return {str(answer.placement).split("; ")[1] for answer in answers}


async def test_an_instance_drains_and_comes_back(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(decode=2), deterministic_folder) as mesh:
        url = mesh.gateway.url
        await mesh.until_all_are_members()
        assert await places(mesh, 8) == {"decode=d0", "decode=d1"}
        await asyncio.to_thread(drain, url, "d0", 5.0, console())
        assert mesh.loads()[D0].draining
        assert await places(mesh, 8) == {"decode=d1"}
        await asyncio.to_thread(resume, url, "d0", console())
        await mesh.until(lambda: not any(info.load.draining for info in mesh.gateway.mesh.instances()))
        assert await places(mesh, 8) == {"decode=d0", "decode=d1"}
        # In the order in which they joined, which is any.
        with pytest.raises(
            GatewayRefused, match=r"no instance 'd7' is in the mesh, which has (?=.*p0)(?=.*d0)(?=.*d1)"
        ):
            await asyncio.to_thread(drain, url, "d7", None, console())


async def test_what_waits_for_the_last_instance_goes_on_when_it_resumes(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(decode=1, prefill=2), deterministic_folder) as mesh:
        url = mesh.gateway.url
        await asyncio.to_thread(drain, url, "p0", 5.0, console())
        await asyncio.to_thread(drain, url, "p1", 5.0, console())
        refused = await mesh.complete("nobody computes this")
        assert (refused.status, refused.body["error"]["code"]) == (503, "no_instance")
        await asyncio.to_thread(resume, url, "p1", console())
        await mesh.until(lambda: mesh.gateway.mesh.not_ready() is None)
        assert (await mesh.complete("somebody computes this")).status == 200
        await asyncio.to_thread(resume, url, "p0", console())


async def test_draining_waits_for_what_runs(deterministic_folder: Path) -> None:
    def slow(instance: InstanceConfig) -> Runner:
        return deterministic(instance, step_seconds=0.01)

    async with in_process_mesh(mesh_config(), deterministic_folder, build=slow) as mesh:
        url = mesh.gateway.url
        running = asyncio.ensure_future(mesh.complete("long", max_tokens=100, ignore_eos=True))
        await mesh.until(lambda: mesh.loads()[D0].running > 0)
        with pytest.raises(NotDrained, match="still holds 1 requests"):
            await asyncio.to_thread(drain, url, "d0", 0.0, console())
        assert (await running).status == 200
        await asyncio.to_thread(drain, url, "d0", 10.0, console())
        await asyncio.to_thread(resume, url, "d0", console())
        await mesh.until(lambda: not mesh.loads()[D0].draining)


# ---------------------------------------------------------------- chat


async def test_a_conversation_goes_on(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        url = mesh.gateway.url
        settings = ChatSettings(url, await asyncio.to_thread(served_model, url), "be brief", 8, 0.0)
        lines = iter(["", "hello", "/reset", "hello", "/quit", "never said"])
        shown = console()
        await asyncio.to_thread(run_chat, settings, None, lambda: next(lines), shown)
        said = text_of(shown).splitlines()
        assert "/reset forgets" in said[0]
        assert said[1] == said[2] != "", "the same conversation, twice"
        first = console()
        await asyncio.to_thread(run_chat, settings, "hello", lambda: "", first)
        assert text_of(first).splitlines()[0] == said[1]


async def test_an_answer_is_heard_while_it_grows_and_the_next_turn_says_it(
    deterministic_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stepwise(deterministic_folder, mesh_config()) as (mesh, steps):
        prompts, submit = list[tuple[int, ...]](), mesh.gateway.mesh.submit

        def note(request: GenerationRequest) -> RequestStream:
            prompts.append(request.prompt)
            return submit(request)

        monkeypatch.setattr(mesh.gateway.mesh, "submit", note)
        talk = Conversation(ChatSettings(mesh.gateway.url, mesh.config.model, max_tokens=8, temperature=0.0))
        loop, has_begun, heard = asyncio.get_running_loop(), asyncio.Event(), list[str]()

        def listen() -> None:
            for piece in talk.say("hello"):
                heard.append(piece)
                if piece:
                    loop.call_soon_threadsafe(has_begun.set)

        steps.prefill.let(MANY)
        listening = asyncio.ensure_future(asyncio.to_thread(listen))
        # All but the last token.
        steps.decode.let(7)
        await asyncio.wait_for(has_begun.wait(), 10)
        assert mesh.gateway.mesh.holdings().requests == 1
        steps.decode.let(MANY)
        await listening
        assert await asyncio.to_thread(lambda: list(talk.say("and now?")))
        first = {"role": "user", "content": "hello"}
        answer = {"role": "assistant", "content": "".join(heard)}
        second = {"role": "user", "content": "and now?"}
        assert prompts == [chat_prompt(deterministic_folder, *said) for said in ([first], [first, answer, second])]


def chat_prompt(folder: Path, *messages: dict[str, str]) -> tuple[int, ...]:
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.load(folder, tokenizer.special_tokens, datetime.now)
    assert template is not None
    return tokenizer.encode(template.render(messages), add_special_tokens=False)


async def test_a_turn_that_fails_has_not_taken_place(deterministic_folder: Path) -> None:
    async with in_process_mesh(mesh_config(), deterministic_folder) as mesh:
        url = mesh.gateway.url
        talk = Conversation(ChatSettings(url, "no such model"))
        with pytest.raises(ChatFailed, match="no such model"):
            await asyncio.to_thread(lambda: list(talk.say("hello")))
        assert talk._messages == []
        lines = iter(["hello"])

        def read() -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        shown = console()
        await asyncio.to_thread(run_chat, ChatSettings(url, "no such model"), None, read, shown)
        assert "error: " in text_of(shown)
