"""The mesh of this repository's compose.yaml: built, started, asked from outside, a part of it killed, taken down."""

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.docker.engine import ROOT, Engine

# The first test waits for the engine and the image: minutes.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

FREE_PORT = {"API_ADDRESS": "127.0.0.1:"}
PROCESSES = ("gateway", "p0", "d0")
ASKED = {"model": "smollm2", "temperature": 0, "max_tokens": 16}


class Stack:
    """A running compose project."""

    def __init__(self, engine: Engine, files: Sequence[Path], variables: Mapping[str, str], project: str) -> None:
        self.engine = engine
        self._files = files
        self._variables = variables
        self.project = project

    def compose(self, *arguments: str, over: Sequence[Path] = ()) -> str:
        """`over` are files that change this one command."""
        return self.engine.compose([*self._files, *over], self._variables, self.project, *arguments)

    def container(self, service: str) -> str:
        return self.compose("ps", "-a", "-q", service).strip()

    def inspect(self, service: str, what: str) -> str:
        return self.engine.docker("inspect", "--format", f"{{{{{what}}}}}", self.container(service)).strip()

    def python(self, service: str, code: str) -> str:
        """What `code` prints in the container."""
        return self.engine.docker("exec", self.container(service), "python", "-c", code).strip()

    @cached_property
    def url(self) -> str:
        return f"http://{self.compose('port', 'gateway', '8000').strip()}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return json.load(answer)

    def handed_off(self) -> Counter[str]:
        """Payload bytes of KV that went from p0 to d0 so far, by backend."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found: Counter[str] = Counter()
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == "pdmesh_handoff_bytes_total":
                found[sample.labels["backend"]] += int(sample.value)
        return found

    def ask(self, question: str = "What is the capital of France?") -> tuple[str, dict[str, str]]:
        """The text of the answer, and where it was computed."""
        body = json.dumps({**ASKED, "messages": [{"role": "user", "content": question}]}).encode()
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            words = answer.headers["x-pdmesh-placement"].split("; ")
            text = json.load(answer)["choices"][0]["message"]["content"]
        return text, dict(word.split("=") for word in words)

    def generation(self, name: str) -> int | None:
        """Of the life that the gateway knows; None: it knows none."""
        members = [entry["member"] for entry in self.get("/instances")["instances"]]
        return next((member["generation"] for member in members if member["instance"] == name), None)

    def is_ready(self) -> bool:
        try:
            self.get("/ready")
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end_s, self.compose("logs", "--no-color", "--tail", "30")
            time.sleep(0.2)


@pytest.fixture(scope="module")
def stack(engine: Engine, image: str, model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    here = tmp_path_factory.mktemp("stack") / "here.yaml"
    models = {"type": "bind", "source": str(model_cache), "target": "/var/cache/pdmesh"}
    services = {name: {"image": image, "volumes": [models]} for name in ("model", *PROCESSES)}
    here.write_text(yaml.safe_dump({"services": services | {"keys": {"image": image}}}))
    stack = Stack(engine, (ROOT / "compose.yaml", here), FREE_PORT, f"pdmeshtest{os.getpid()}")
    try:
        stack.compose("up", "-d")
        stack.until(stack.is_ready)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "1")


def test_an_answer_from_outside_for_which_kv_went_between_containers(stack: Stack) -> None:
    text, placement = stack.ask()
    assert "Paris" in text
    assert (placement["prefill"], placement["decode"]) == ("p0", "d0")
    assert int(placement["split"]) > 0
    assert int(placement["kv-bytes"]) > 0


def test_shared_memory_and_tcp_both_answer_and_kv_goes_by_shared_memory(stack: Stack) -> None:
    (link,) = stack.get("/links")["links"]
    assert {figures["backend"] for figures in link["figures"]} == {"shm", "tcp"}
    assert link["failed"] == []
    before = stack.handed_off()
    stack.ask("Name three rivers that nobody has asked for before.")
    assert set(stack.handed_off() - before) == {"shm"}


def test_the_gateway_is_healthy(stack: Stack) -> None:
    stack.until(lambda: stack.inspect("gateway", ".State.Health.Status") == "healthy", 30)


def test_instances_are_on_networks_that_lead_nowhere(stack: Stack) -> None:
    for name in ("p0", "d0"):
        networks = json.loads(stack.inspect(name, "json .NetworkSettings.Networks"))
        assert len(networks) == 2
        for network in networks:
            assert stack.engine.docker("network", "inspect", "--format", "{{.Internal}}", network).strip() == "true"


def test_the_gateway_is_not_on_the_network_of_kv(stack: Stack) -> None:
    find = "import socket\ntry: print(socket.gethostbyname('p0.data'))\nexcept OSError: print('nobody')"
    assert stack.python("gateway", find) == "nobody"
    assert stack.python("d0", find) != "nobody"


def test_a_process_is_nobody_in_particular_and_changes_nothing(stack: Stack) -> None:
    code = "import os\ntry: open('/opt/x', 'w')\nexcept OSError as error: print(os.getuid(), error.strerror)"
    for name in PROCESSES:
        assert stack.python(name, code) == "10001 Read-only file system"


GREETING = r"""
import socket
s = socket.create_connection(("gateway", 5700), 10)
s.sendall(b"\xff" + bytes(8) + b"\x7f\x03")
heard = b""
while len(heard) < 32:
    heard += s.recv(64) or bytes(32)
print(heard[12:32].rstrip(b"\0").decode())
"""
"""ZMTP's greeting up to its version, and then which mechanism the gateway's half of it asks for."""


def test_who_joins_needs_a_key(stack: Stack) -> None:
    assert stack.python("d0", GREETING) == "CURVE"
    code = "import glob, os; print(*(oct(os.stat(p).st_mode) for p in glob.glob('/run/pdmesh-keys/*/private.key')))"
    assert stack.python("gateway", code) == " ".join(["0o100600"] * 3)


def test_a_killed_instance_comes_back_and_serves(stack: Stack) -> None:
    before, _ = stack.ask()
    life = stack.generation("d0")
    # Not `docker kill`: an engine takes that for a wish, and starts nothing again.
    pid = stack.inspect("d0", ".State.Pid")
    code = f"import os; os.kill({pid}, 9)"
    killer = ("run", "--rm", "--network", "none", "--pid", "host", "--user", "0", "--entrypoint", "python")
    stack.engine.docker(*killer, stack.inspect("d0", ".Config.Image"), "-c", code)
    stack.until(lambda: stack.generation("d0") not in (None, life) and stack.is_ready())
    assert stack.inspect("d0", ".RestartCount") == "1"
    after, placement = stack.ask()
    assert after == before
    assert int(placement["split"]) > 0


def test_a_key_is_revoked_and_made_anew(stack: Stack) -> None:
    before, _ = stack.ask()
    stack.compose("run", "--rm", "keys", "keys", "revoke", "d0")
    stack.until(lambda: not stack.is_ready())
    assert stack.generation("d0") is None
    stack.compose("run", "--rm", "keys", "keys", "init", "--instance", "d0")
    stack.until(stack.is_ready)
    assert stack.ask()[0] == before


def test_kv_goes_by_tcp_where_that_is_all_there_is(stack: Stack, tmp_path: Path) -> None:
    expected, _ = stack.ask()
    life, before = stack.generation("d0"), stack.handed_off()
    tcp = tmp_path / "tcp.yaml"
    tcp.write_text(yaml.safe_dump({"services": {"d0": {"environment": {"PDMESH_TRANSFER__BACKENDS": "[tcp]"}}}}))
    stack.compose("up", "-d", "--no-deps", "d0", over=[tcp])
    stack.until(lambda: stack.generation("d0") not in (None, life) and stack.is_ready())
    text, placement = stack.ask()
    assert text == expected
    assert int(placement["split"]) > 0
    assert set(stack.handed_off() - before) == {"tcp"}


def test_all_end_in_order_and_nothing_is_left(stack: Stack) -> None:
    """The last test of the stack."""
    stack.compose("stop")
    codes = {name: stack.inspect(name, ".State.ExitCode") for name in ("keys", "model", *PROCESSES)}
    assert codes == dict.fromkeys(codes, "0"), stack.compose("logs", "--no-color", "--tail", "30")
    stack.compose("down", "--volumes")
    mine = ("--filter", f"label=com.docker.compose.project={stack.project}", "-q")
    assert stack.engine.docker("ps", "-a", *mine) == ""
    assert stack.engine.docker("network", "ls", *mine) == ""
    assert stack.engine.docker("volume", "ls", *mine) == ""
