"""No forward, no tokeniser and no chat template ever runs on the event loop's thread, in the services as they are.

Not by a clock: every call that this thread makes while the mesh serves is looked at.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import transformers

from common.config.types import InstanceConfig
from services.engine.build import build_instance_runner
from services.engine.runner import Runner, Sampled, StepItem
from services.engine.twin.deterministic_model import VOCAB_SIZE, write_deterministic_model
from services.text.chat_template import ChatTemplate
from services.text.tokenizer import Tokenizer
from tests.mesh.inprocess import InProcessMesh, in_process_mesh, mesh_config
from transfer.backends.tcp import TcpBackend

PROMPT = "a prompt that is computed in two places"
FOREIGN = frozenset({"torch", "transformers", "tokenizers", "jinja2"})
"""Libraries whose code has no business on the loop once all is loaded."""
OURS = ("services.text.", "services.engine.")
LOOP_SIDE = frozenset(
    {
        "services.engine.api",
        "services.engine.jobs",
        "services.engine.thread",
        "services.engine.worker",
        "services.engine.kv.prefix_journal",
    }
)
"""What of the engine belongs on the loop: its jobs, its events, and the hand over to its thread."""


class Calls:
    """What the watched thread called that it must not: "module.function"."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.total = 0

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self._add(str(frame.f_globals.get("__name__")), frame.f_code.co_qualname)
        elif event == "c_call":
            owner = getattr(argument, "__self__", None)
            module = getattr(argument, "__module__", None) or type(owner).__module__
            self._add(str(module), argument.__qualname__)

    def _add(self, module: str, function: str) -> None:
        self.total += 1
        if module.split(".")[0] in FOREIGN or (module.startswith(OURS) and module not in LOOP_SIDE):
            self.seen.add(f"{module}.{function}")


@contextmanager
def watched() -> Iterator[Calls]:
    """Every call of this thread meanwhile."""
    calls, before = Calls(), sys.getprofile()
    sys.setprofile(calls.note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real model of a few thousand weights, with a tokenizer and a chat template."""
    folder = write_deterministic_model(tmp_path_factory.mktemp("tiny"))
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(7)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class NotedRunner(Runner):
    """Another runner, and the threads that run it."""

    def __init__(self, runner: Runner, threads: set[int]) -> None:
        self._runner = runner
        self._threads = threads
        self.layout, self.kv, self.num_blocks = runner.layout, runner.kv, runner.num_blocks
        self.context_length, self.vocab_size = runner.context_length, runner.vocab_size

    def run(
        self, items: Sequence[StepItem], on_layer: Callable[[int], None] | None = None
    ) -> list[tuple[Sampled, ...]]:
        self._threads.add(threading.get_ident())
        return self._runner.run(items, on_layer)

    def copy_block(self, source: int, target: int) -> None:
        self._threads.add(threading.get_ident())
        self._runner.copy_block(source, target)


async def chat(mesh: InProcessMesh, **parameters: Any) -> str:
    body = {"model": mesh.config.model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 12}
    async with mesh.client.post("/v1/chat/completions", json=body | parameters) as response:
        text = await response.text()
        assert response.status == 200, text
        return text


async def test_the_loop_runs_no_forward_and_no_tokeniser(tiny_folder: Path) -> None:
    forwards: set[int] = set()

    def build(instance: InstanceConfig) -> Runner:
        return NotedRunner(build_instance_runner(instance, "float32", tiny_folder), forwards)

    async with in_process_mesh(mesh_config(), tiny_folder, backend=TcpBackend(), build=build) as mesh:
        with watched() as calls:
            whole = await mesh.complete(PROMPT, pdmesh={"split": 0}, logprobs=3, stop="never said")
            assert (await mesh.complete(PROMPT, pdmesh={"split": "full"})).text == whole.text
            await mesh.complete(PROMPT, n=3, seed=1, temperature=1, top_p=0.9)
            await chat(mesh)
            assert "[DONE]" in await chat(mesh, stream=True)
    assert calls.total > 1_000
    assert calls.seen == set()
    assert len(forwards) == 2, "one thread for each engine"
    assert threading.get_ident() not in forwards


def test_the_watch_sees_what_it_looks_for(tiny_folder: Path) -> None:
    tokenizer = Tokenizer.load(tiny_folder)
    template = ChatTemplate.load(tiny_folder, tokenizer.special_tokens, datetime.now)
    assert template is not None
    model = torch.nn.Linear(2, 2)
    with watched() as calls:
        tokenizer.encode(PROMPT, add_special_tokens=False)
        tokenizer.decode((65, 66))
        template.render([{"role": "user", "content": "hello"}])
        model(torch.zeros(2))
    for word in ("Tokenizer.encode", "encode_batch_fast", "Tokenizer.decode", "ChatTemplate.render", "linear"):
        assert any(word in name for name in calls.seen), (word, calls.seen)
