"""Vandals at every port of a real mesh: nothing crashes, nothing leaks, and a bystander keeps being answered."""

import asyncio
import gzip
import io
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
import pytest_asyncio
import zmq
import zmq.asyncio

from common.bus.codecs import from_worker_codec
from common.config.addresses import parse_control
from common.errors import Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId, TransferId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.kv.ticket import Ticket
from common.messages.control import (
    EmittedTokens,
    Heartbeat,
    JobFailed,
    Leaving,
    Load,
    PrefillReleased,
    Register,
    Role,
    TokensEmitted,
)
from tests.mesh.inprocess import mesh_config
from tests.mesh.processes import Processes, processes
from transfer.frames import encode_hello, encode_message
from transfer.plan import region_of
from transfer.protocol.messages import SPOKEN, Capabilities, Open, source_codec
from transfer.testing.puppets import bent

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

MODEL = "smollm2"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DEADLINE_S = 5.0
CRASHES = ("Traceback", "could not be handled", " task ", "ERROR")
"""What a log says of a fault of ours."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(deterministic_folder: Path) -> AsyncIterator[Processes]:
    settings = {"deadline_s": DEADLINE_S, "heartbeat_s": 0.1, "lease_s": 2.0, "max_body": 1 << 20}
    config = mesh_config()
    # A place for the bystander, too, while deaf clients hold 24 until their deadline, which is no later than its own.
    instances = tuple(msgspec.structs.replace(instance, max_batch=64) for instance in config.instances)
    config = msgspec.structs.replace(config, instances=instances)
    async with processes(deterministic_folder, config, **settings) as mesh:
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(running: Processes) -> AsyncIterator[Processes]:
    """The mesh, with a bystander whose requests are answered before, during and after what the test does."""
    pids, before = [running.pid(name) for name in running.local.names()], complaints(running)
    async with bystander(running):
        yield running
    await running.until_nothing_is_held()
    assert [running.pid(name) for name in running.local.names()] == pids
    assert complaints(running) - before == set()


def complaints(mesh: Processes) -> set[str]:
    lines = (line for name in mesh.local.names() for line in mesh.local.logs(name))
    return {line for line in lines if any(word in line for word in CRASHES)}


@asynccontextmanager
async def bystander(mesh: Processes) -> AsyncIterator[None]:
    expected = await answer(mesh)
    is_over = asyncio.Event()

    async def ask_on() -> int:
        for asked in range(1, 1_000_000):
            assert await answer(mesh) == expected
            if is_over.is_set():
                return asked
        raise AssertionError("the test does not end")

    asking = asyncio.ensure_future(ask_on())
    try:
        yield
    finally:
        is_over.set()
        await asking


async def answer(mesh: Processes) -> str:
    """One that goes by P and D, so that every port is in use."""
    body = {"model": MODEL, "prompt": "an honest prompt", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    async with mesh.client.post(COMPLETIONS, json=body | {"pdmesh": {"split": "full"}}) as response:
        text = await response.text()
    if response.status != 200:
        raise AssertionError(f"{text}\n{await trace_of(mesh, response.headers['X-Request-ID'])}")
    return str(json.loads(text)["choices"][0]["text"])


async def trace_of(mesh: Processes, request: str) -> str:
    """Where it was stuck, and what the instances hold."""
    async with mesh.client.get(f"/traces/{request}") as trace, mesh.client.get("/instances") as instances:
        return f"{await trace.text()}\n{await instances.text()}"


# ---------------------------------------------------------------- JSON

NUMBERS = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * 400,
    str(2**63),
    str(-(2**63) - 1),
    "-1",
    "1.5",
    '"5"',
    "true",
    "[]",
    "{}",
)
FIELDS = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "seed", "n", "logprobs", "logit_bias", "stop", "stream", "stream_options", "pdmesh",
    "ignore_eos", "echo", "model", "prompt", "no_such_field",
)  # fmt: skip


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_no_value_of_any_field_is_our_fault(mesh: Processes, path: str) -> None:
    usual = {"model": f'"{MODEL}"', "max_tokens": "2"}
    usual |= {"prompt": '"hi"'} if path == COMPLETIONS else {"messages": '[{"role": "user", "content": "hi"}]'}
    refused = 0
    for field in FIELDS:
        for number in NUMBERS:
            body = ", ".join(f'"{name}": {value}' for name, value in (usual | {field: number}).items())
            refused += await status_of(mesh, f"{{{body}}}".encode(), path) == 400
    assert refused > len(FIELDS) * len(NUMBERS) / 2
    for split in ("-1", "NaN", "1e999", '"x"', "[1]", "true"):
        body = ", ".join(f'"{name}": {value}' for name, value in usual.items())
        assert await status_of(mesh, f'{{{body}, "pdmesh": {{"split": {split}}}}}'.encode(), path) == 400
    for key, value in (
        ("-1", "1"),
        ("NaN", "1"),
        ("1e3", "1"),
        ("9" * 40, "1"),
        ("1", "NaN"),
        ("1", "1e999"),
        ("", "1"),
    ):
        body = ", ".join(f'"{name}": {value}' for name, value in usual.items())
        assert await status_of(mesh, f'{{{body}, "logit_bias": {{"{key}": {value}}}}}'.encode(), path) == 400


def bodies() -> dict[str, tuple[bytes, set[int]]]:
    """Name → (body, statuses of which one must be the answer)."""

    def completion(prompt: bytes, more: bytes = b"") -> bytes:
        return b'{"model": "smollm2", "max_tokens": 2, "prompt": %b%b}' % (prompt, more)

    def chat(content: bytes) -> bytes:
        return b'{"model": "smollm2", "max_tokens": 2, "messages": %b}' % content

    deep = 100_000
    return {
        "nothing": (b"", {400}),
        "a zero": (b"\0", {400}),
        "not UTF-8": (b'{"model": "\xff\xfe"}', {400}),
        "a mark of byte order": (b"\xef\xbb\xbf{}", {400}),
        "a list": (b"[]", {400}),
        "more after the end": (b"{} x", {400}),
        "deep lists": (b"[" * deep, {400}),
        "deep objects": (b'{"a":' * deep, {400}),
        "a deep prompt": (completion(b"[" * 900 + b"]" * 900), {400}),
        "deep metadata": (completion(b'"a"', b', "metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 900), {200, 400}),
        "many keys": (b"{" + b",".join(b'"k%d":1' % i for i in range(50_000)) + b"}", {400}),
        "a long key": (completion(b'"a"', b', "%b": 1' % (b"k" * 500_000)), {400}),
        "a surrogate alone": (completion(rb'"\ud800 \udc00x"'), {400}),
        "a key that is half a surrogate": (completion(b'"a"', rb', "\ud800": 1'), {400}),
        "a stop that is half a surrogate": (completion(b'"a"', rb', "stop": "\ud800"'), {400}),
        "half a surrogate in a message": (chat(rb'[{"role": "user", "content": "\ud83d"}]'), {400}),
        "control characters": (completion(rb'"\u0000\u0001\u007f\u2028"'), {200}),
        "raw control characters": (completion(b'"\x01"'), {400}),
        "no prompt": (completion(b'""'), {400}),
        "an empty list of tokens": (completion(b"[]"), {400}),
        "tokens that do not exist": (completion(b"[1, -1]"), {400}),
        "stops without end": (completion(b'"a"', b', "stop": [%b"s"]' % (b'"s",' * 5000)), {400}),
        "an empty stop": (completion(b'"a"', b', "stop": ""'), {400}),
        "too long a text": (completion(b'"%b"' % (b"a" * 900_000)), {400}),
        "too large a body": (completion(b'"%b"' % (b"a" * 10_000_000)), {413}),
        "no messages": (chat(b"[]"), {400}),
        "an empty message": (chat(b'[{"role": "user", "content": ""}]'), {200}),
        "a message of null": (chat(b'[{"role": "user", "content": null}]'), {400}),
        "a message of no parts": (chat(b'[{"role": "user", "content": []}]'), {200, 400}),
        "parts that are none": (chat(b'[{"role": "user", "content": [[1]]}]'), {400}),
        "a part of a kind that is none": (chat(b'[{"role": "user", "content": [{"type": {"a": 1}}]}]'), {400}),
        "twenty thousand messages": (
            chat(b'[%b{"role": "user", "content": "x"}]' % (b'{"role":"user","content":"x"},' * 20_000)),
            {400},
        ),
    }


async def test_no_body_is_our_fault(mesh: Processes) -> None:
    wrong = {}
    for name, (body, expected) in bodies().items():
        path = CHAT if b'"messages"' in body else COMPLETIONS
        if (status := await status_of(mesh, body, path)) not in expected:
            wrong[name] = status
    assert wrong == {}


async def test_a_small_body_that_unpacks_to_a_large_one_is_refused(mesh: Processes) -> None:
    bomb = gzip.compress(b'{"a":"' + b"a" * 100_000_000 + b'"}', 1)
    assert len(bomb) < 1 << 20
    assert await status_of(mesh, bomb, COMPLETIONS, {"Content-Encoding": "gzip"}) == 413


async def status_of(mesh: Processes, body: bytes, path: str, headers: dict[str, str] | None = None) -> int:
    """The status, which is not a 500; an error is in the envelope of all errors."""
    async with mesh.client.post(path, data=io.BytesIO(body), headers=headers) as response:
        text = await response.text()
        assert response.status < 500, text
        if response.status != 200 and response.status != 499:
            assert json.loads(text)["error"]["message"]
        return response.status


# ---------------------------------------------------------------- HTTP

WHOLE = b'{"model": "smollm2", "prompt": "hi", "max_tokens": 3000, "ignore_eos": true, "stream": %b}'
RAW = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" * 20,
    "a version to come": b"GET / HTTP/9.9\r\n\r\n",
    "a chunk without size": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "an endless line": b"A" * 100_000,
    "headers without end": b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    "no gzip": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    "an expectation": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: foo\r\nContent-Length: 2\r\n\r\n{}",
    "an odd charset": b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain; charset=odd\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    "a method": b"BREW /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path": b"GET /v1/models/%ed%a0%80%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
}


async def test_no_bytes_at_the_http_port_are_our_fault(mesh: Processes) -> None:
    answers = {name: await first_line(http_port(mesh), raw) for name, raw in RAW.items()}
    assert {name: line for name, line in answers.items() if line and not line.split(b" ")[1].startswith(b"4")} == {}
    assert sum(bool(line) for line in answers.values()) > len(RAW) / 2


async def first_line(port: int, raw: bytes) -> bytes:
    """Of the answer; nothing where the connection was cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        async with asyncio.timeout(10):
            return await reader.readline()
    except ConnectionResetError:
        return b""
    finally:
        writer.transport.abort()


async def test_crowds_that_do_not_finish_asking_are_shown_out(mesh: Processes) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
    connections = [await asyncio.open_connection("127.0.0.1", http_port(mesh)) for _ in range(400)]
    slow_bodies = connections[::2]
    for _, writer in slow_bodies:
        writer.write(head + b"\r\n{")
    for _, writer in connections[1::2]:
        writer.write(head + b"X-")
    async with asyncio.timeout(30):
        for reader, _ in slow_bodies:
            assert b" 504 " in await reader.readline()
    for _, writer in connections:
        writer.transport.abort()


@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_connection_closed_on_one_side_is_answered_or_freed(mesh: Processes, stream: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port(mesh))
    writer.write(asking(WHOLE % stream))
    writer.write_eof()
    async with asyncio.timeout(30):
        await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_clients_that_read_nothing_are_cut_off_at_their_deadline(mesh: Processes) -> None:
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 2000, "n": 4, "logprobs": 20}
    request = asking(json.dumps(body | {"ignore_eos": True, "stream": True}).encode())
    with ExitStack() as stack:
        for _ in range(6):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", http_port(mesh)))
            deaf.sendall(request)
        gateway = psutil.Process(mesh.pid("gateway"))
        before = gateway.memory_info().rss
        async with asyncio.timeout(30):
            while await ended_late(mesh) < 6:
                await asyncio.sleep(0.05)
                assert gateway.memory_info().rss < before + (64 << 20)


async def ended_late(mesh: Processes) -> float:
    return (await mesh.metrics()).get('pdmesh_requests_total{outcome="deadline_exceeded"}', 0.0)


def asking(body: bytes) -> bytes:
    return b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def http_port(mesh: Processes) -> int:
    return int(mesh.url.rsplit(":", 1)[1])


# ---------------------------------------------------------------- the control port and the data port

STRANGER, NOBODY = InstanceId("p9"), RequestId("r-nobody")
LIES = (
    Heartbeat(STRANGER, Generation(1), Load()),
    Heartbeat(InstanceId("d0"), Generation(1), Load(running=10_000)),
    Leaving(InstanceId("d0"), Generation(1)),
    PrefillReleased(InstanceId("p0"), Generation(1), NOBODY),
    JobFailed(InstanceId("d0"), Generation(1), NOBODY, Failure(FailureKind.ENGINE_FAILED, "so I say")),
    TokensEmitted(InstanceId("d0"), Generation(1), (EmittedTokens(NOBODY, 0, 0, (1, 2, 3), None),)),
)


async def test_nonsense_at_the_control_port_is_dropped_and_counted(mesh: Processes) -> None:
    rng = random.Random(1)
    encode = from_worker_codec().encode
    truths = [encode(lie) for lie in LIES]
    torn = [truth[: rng.randrange(len(truth))] for truth in truths]
    bent = [truth[:i] + bytes([truth[i] ^ 0xFF]) + truth[i + 1 :] for truth in truths for i in range(len(truth))]
    nested = b"\x91" * 100_000
    frames = [*truths, *torn, *bent, nested, b"", *(rng.randbytes(rng.randrange(2000)) for _ in range(300))]
    with dealer(mesh.local.config.gateway.control) as socket:
        for frame in frames:
            await socket.send(frame)
        await socket.send_multipart(frames[:50])
        async with asyncio.timeout(20):
            while await malformed(mesh) < 300:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)


async def malformed(mesh: Processes) -> float:
    return (await mesh.metrics()).get('pdmesh_malformed_frames_total{channel="control"}', 0.0)


@contextmanager
def dealer(endpoint: str) -> Iterator[zmq.asyncio.Socket]:
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoint)
        yield socket


@pytest.mark.parametrize("where", ["control", "data"])
async def test_garbage_at_an_inner_port_harms_nobody(mesh: Processes, where: str) -> None:
    port = control_port(mesh) if where == "control" else data_port(mesh)
    rng = random.Random(2)
    garbage = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" * 20,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        b"\xff" * 100_000,
        struct.pack("<IQ", 1, 2**63) * 100,
        struct.pack(">IQ", 1, 2**63) * 100,
        b"",
        *(rng.randbytes(rng.randrange(1, 5000)) for _ in range(100)),
    ]
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
    await asyncio.gather(*(throw(port, piece, closes=i % 2 == 0) for i, piece in enumerate(garbage)))
    await answer(mesh)
    for _, writer in silent:
        writer.transport.abort()


async def test_numbers_beyond_a_machine_word_at_an_inner_port_harm_nobody(mesh: Processes) -> None:
    """In what is well formed otherwise: only who understands it stumbles over it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", data_port(mesh))
    writer.write(encode_hello() + encode_message(endless_open()))
    async with asyncio.timeout(10):
        await reader.readuntil(b"not an interval")
    writer.transport.abort()
    before = await malformed(mesh)
    with dealer(mesh.local.config.gateway.control) as socket:
        await socket.send(endless_register())
        async with asyncio.timeout(20):
            while await malformed(mesh) == before:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)


LAYOUT = KVLayout("m", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 2), Interval(0, 2), 8)


def endless_open() -> bytes:
    whole = Open(
        capabilities=Capabilities(SPOKEN, LAYOUT, tuple(KVDType), 1 << 20),
        ticket=Ticket(TransferId("t"), b"", Generation(1), Generation(1), ()),
        region=region_of(LAYOUT),
        num_tokens=1,
        zones=1,
        descriptor=b"tcp",
        checksum=True,
        patience_s=1.0,
    )
    return bent(source_codec().encode(whole), ("capabilities", "layout"), endless_layout())


def endless_register() -> bytes:
    whole = Register(STRANGER, Role.DECODE, Generation(1), (), LAYOUT, 100, 100, 1)
    return bent(from_worker_codec().encode(whole), ("layout",), endless_layout())


def endless_layout() -> dict[str, object]:
    return msgspec.to_builtins(LAYOUT) | {"layers": [0, 1 << 63], "scales": b"1234"}


async def throw(port: int, garbage: bytes, *, closes: bool) -> None:
    """Send it, then go: in order or not."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(garbage)
        if closes:
            await writer.drain()
            writer.write_eof()
    except OSError:
        pass  # shown out already
    finally:
        writer.transport.abort()


def control_port(mesh: Processes) -> int:
    address = parse_control(mesh.local.config.gateway.control)
    assert address is not None
    return address[1]


def data_port(mesh: Processes) -> int:
    connections = psutil.Process(mesh.pid("p0")).net_connections("tcp")
    (port,) = [connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN]
    return int(port)
