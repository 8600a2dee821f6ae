"""`pdmesh trace` against a gateway that says what the test wants."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.errors import Failure, FailureKind
from common.ids import InstanceId, RequestId
from common.messages.control import PrefillTimes
from services.cli.gateway_client import GatewayRefused, NoMesh
from services.cli.main import app
from services.cli.trace import FileNotWritten, NoTrace, show_trace, show_traces, write_perfetto
from services.cli.trace_view import Leg, headline, legs, parts_table, why_nothing_is_predicted
from services.gateway.records.trace_types import LandedKV, RequestTrace, TraceList, WholeTraces, summary_of
from services.scheduling.placement import Candidate, Placement
from services.scheduling.policies.balancer import Split
from tests.unit.cli.http_case import serving

P0, P1, D0 = (InstanceId(name) for name in ("p0", "p1", "d0"))
CHOSEN = Candidate(P0, D0, Split(tokens=300, prefill_s=0.3, transfer_s=0.1, decode_s=0.2, first_token_s=0.75))
OTHER = Candidate(P1, D0, Split(tokens=200, prefill_s=0.5, transfer_s=0.0625, decode_s=0.3, first_token_s=1.25))
TRACE = RequestTrace(
    request=RequestId("r-1"),
    policy="cronus",
    prompt_tokens=400,
    max_tokens=64,
    choices=1,
    asked_split=None,
    age_s=30.0,
    placed_s=0.25,
    placement=Placement(P0, D0, 300, 1_500_000, (CHOSEN, OTHER)),
    landed=LandedKV(0.75, 1_500_000, 0.4, "shm"),
    released_s=0.875,
    first_token_s=1.25,
    last_token_s=3.0,
    tokens=64,
    ended_s=3.5,
    outcome="finished",
)
WAITING = RequestTrace(RequestId("r-2"), "cronus", 7, 8, 2, None, 2.0)
LOST = msgspec.structs.replace(
    WAITING,
    request=RequestId("r-[red]3"),
    policy="fixed",
    placed_s=0.0,
    placement=Placement(None, D0, 0, 0),
    ended_s=0.5,
    outcome="decode_lost",
    failure=Failure(FailureKind.DECODE_LOST, "[bold]gone[/bold]", D0),
)
KNOWN = {trace.request: trace for trace in (TRACE, WAITING, LOST)}


def answer(path: str) -> tuple[int, bytes]:
    if path.startswith("/traces?") and path.endswith("&whole=true"):
        found = tuple(KNOWN.values()) if "limit=7" in path else ()
        return 200, msgspec.json.encode(WholeTraces(7, found))
    if path.startswith("/traces?limit="):
        kept = int(path.partition("=")[2])
        lines = tuple(map(summary_of, KNOWN.values())) if kept > 2 else ()
        return 200, msgspec.json.encode(TraceList(0 if kept == 1 else kept, lines))
    if (name := path.removeprefix("/traces/")) in ("r-1", "r-2", "r-%5Bred%5D3"):
        return 200, msgspec.json.encode(KNOWN[RequestId(name.replace("%5B", "[").replace("%5D", "]"))])
    if path.startswith("/traces/"):
        return 404, b'{"error": {"message": "there is no trace of it", "code": "unknown_request"}}'
    if path.startswith("/locked/"):
        return 401, b'{"error": {"message": "an API key is needed", "code": "invalid_api_key"}}'
    if path.startswith("/old/"):
        return 404, b'{"error": {"message": "GET: Not Found", "code": "not_found"}}'
    return 404, b"<html>"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(answer) as url:
        yield url


def one(url: str, request: str, *, as_json: bool = False) -> str:
    out = io.StringIO()
    show_trace(url, request, as_json=as_json, console=Console(file=out, width=160))
    return out.getvalue()


def newest(url: str, limit: int, *, as_json: bool = False) -> str:
    out = io.StringIO()
    show_traces(url, limit, as_json=as_json, console=Console(file=out, width=160))
    return out.getvalue()


def line_with(text: str, word: str) -> str:
    (line,) = (line for line in text.splitlines() if word in line)
    return line


def test_the_legs_add_up_to_the_first_token() -> None:
    found = {leg.name.strip(): leg for leg in legs(TRACE, CHOSEN.split)}
    begin, rest, first = found["until D can begin"], found["D's part"], found["first token"]
    assert first == Leg("first token", 0.75, 1.0)
    assert (begin.real_s, rest.real_s) == (0.5, 0.5)
    assert begin.predicted_s == pytest.approx(0.55)
    assert rest.predicted_s == 0.2
    inside = [found[name].predicted_s for name in ("P's part", "hand-off after it", "other work before")]
    assert inside == [0.3, 0.1, pytest.approx(0.15)]


def test_without_p_there_is_no_hand_off_to_compare() -> None:
    alone = Split(tokens=0, prefill_s=0.0, transfer_s=0.0, decode_s=0.5, first_token_s=0.75)
    trace = msgspec.structs.replace(LOST, first_token_s=1.5)
    assert list(legs(trace, alone)) == [
        Leg("D's other work", 0.25, None),
        Leg("D's part", 0.5, None),
        Leg("first token", 0.75, 1.5),
    ]


TOLD = msgspec.structs.replace(
    TRACE,
    landed=LandedKV(0.8125, 1_500_000, 0.5, "shm", first_byte_s=0.25),
    prefill_times=PrefillTimes(waited_s=0.125, computed_s=0.25, held_s=0.1875),
    decode_computed_s=0.375,
)
"""As TRACE, where the workers told where their time went: P computed from 0.4375 to 0.6875, D from 0.875."""


def test_what_the_workers_told_stands_beside_what_was_predicted() -> None:
    found = {leg.name.strip(): leg.real_s for leg in legs(TOLD, CHOSEN.split)}
    assert (found["other work before"], found["P's part"], found["hand-off after it"]) == (0.1875, 0.25, 0.125)
    assert found["until D can begin"] == 0.5625


def test_the_time_is_told_stage_by_stage_and_adds_up() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(parts_table(TOLD))
    text = out.getvalue()
    shown = {"waits for a place": "250.0 ms", "P waits": "187.5 ms", "P computes": "250.0 ms", "wire": "125.0 ms"}
    shown |= {"D waits": "62.5 ms", "rest of the prompt": "375.0 ms", "D generates": "1.75 s"}
    shown |= {"ends the answer": "500.0 ms"}
    for stage, seconds in shown.items():
        assert seconds in line_with(text, stage), stage
    assert "1.5 MB by shm, which came for 250.0 ms" in line_with(text, "wire")
    assert "64 tokens, 27.8 ms each" in line_with(text, "D generates")
    assert "3.50 s" in line_with(text, "total")


def test_a_request_that_runs_has_its_time_until_now() -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(parts_table(WAITING))
    assert "2.00 s" in line_with(out.getvalue(), "waits for a place")
    assert "2.00 s" in line_with(out.getvalue(), "until now")


def test_a_request_shows_what_was_weighed_and_what_came_true(url: str) -> None:
    text = one(url, "r-1")
    assert "P p0 has the first 300 of the prompt, D d0 the last 100; 1.5 MB of KV" in text
    assert "it finished" in text
    chosen, other = line_with(text, "chosen"), line_with(text, "p1")
    for word in ("p0", "d0", "300", "300.0 ms", "100.0 ms", "200.0 ms", "750.0 ms"):
        assert word in chosen
    for word in ("d0", "200", "500.0 ms", "62.5 ms", "1.25 s"):
        assert word in other
    assert text.index("chosen") < text.index("p1")
    for word in ("550.0 ms", "500.0 ms", "1.10"):
        assert word in line_with(text, "until D can begin")
    for word in ("750.0 ms", "1.5 MB by shm", "400.0 ms"):
        assert word in line_with(text, "KV landed")
    first_event, first_stage, _ = (line for line in text.splitlines() if "first token" in line)
    assert "1.25 s" in first_event
    for word in ("750.0 ms", "1.00 s", "0.75"):
        assert word in first_stage


def test_events_stand_in_the_order_of_time(url: str) -> None:
    text = one(url, "r-1")
    words = ("placed  ", "KV landed", "P let go", "first token", "last token", "ended")
    places = [text.index(word) for word in words]
    assert places == sorted(places)


def test_what_cannot_be_compared_is_said_in_a_sentence(url: str) -> None:
    assert "not placed" in one(url, "r-2")
    assert "it still runs" in one(url, "r-2")
    assert "for each of 2 choices" in one(url, "r-2")
    text = one(url, "r-[red]3")
    assert "r-[red]3" in text
    assert "decode_lost at d0: [bold]gone[/bold]" in text
    assert "the policy 'fixed' weighs no candidates" in text
    own = why_nothing_is_predicted(msgspec.structs.replace(LOST, asked_split=0.5))
    assert own == "Nothing was predicted: the request said its own split, 0.5."


def test_a_client_that_left_is_called_so() -> None:
    gone = Failure(FailureKind.CANCELLED, "the client went away")
    lines = list(headline(msgspec.structs.replace(TRACE, outcome="cancelled", failure=gone)))
    assert lines[-1] == "cancelled: the client went away"


def test_the_newest_are_one_line_each(url: str) -> None:
    text = newest(url, 20)
    line = line_with(text, "r-1")
    for word in ("30 s", "finished", "400+64", "p0 300 → d0", "250.0 ms", "1.00 s", "750.0 ms", "3.50 s"):
        assert word in line
    assert "running" in line_with(text, "r-2")
    assert "decode_lost" in line_with(text, "r-[red]3")


def test_nothing_to_show_is_said_in_words(url: str) -> None:
    assert "keeps no traces; set gateway.traces" in newest(url, 1)
    assert "No request has come yet." in newest(url, 2)


def test_as_json_it_is_what_the_gateway_said(url: str) -> None:
    assert msgspec.json.decode(one(url, "r-1", as_json=True), type=RequestTrace) == TRACE
    assert len(msgspec.json.decode(newest(url, 20, as_json=True), type=TraceList).traces) == 3


def test_an_unknown_request_has_the_gateways_words(url: str) -> None:
    with pytest.raises(GatewayRefused, match="there is no trace of it"):
        one(url, "r-9/../x?")


@pytest.mark.parametrize(
    ("path", "words"), [("locked", "an API key is needed; .*PDMESH_API_KEY"), ("old", "GET: Not Found")]
)
def test_a_refusal_is_told_as_it_is(url: str, path: str, words: str, tmp_path: Path) -> None:
    at = f"{url}/{path}"
    with pytest.raises(GatewayRefused, match=words):
        one(at, "r-1")
    with pytest.raises(GatewayRefused, match=words):
        newest(at, 20)
    with pytest.raises(GatewayRefused, match=words):
        write_perfetto(at, None, 7, tmp_path / "x.json", Console(file=io.StringIO()))


def test_no_gateway_there(url: str) -> None:
    for wrong in ("http://127.0.0.1:1", f"{url}/elsewhere", "nonsense", "http://[", f"{url}\n"):
        with pytest.raises(NoMesh, match="--url"):
            one(wrong, "r-1")


@pytest.mark.parametrize(("arguments", "shown"), [(("r-1",), "chosen"), ((), "400+64"), (("--json",), '"kept": 20')])
def test_the_command_itself(url: str, arguments: tuple[str, ...], shown: str) -> None:
    done = CliRunner().invoke(app, ["trace", *arguments, "--url", url])
    assert done.exit_code == 0, done.output
    assert shown in done.output


def test_a_timeline_of_one_request_and_of_many(url: str, tmp_path: Path) -> None:
    for arguments, requests in ((["r-1"], {"r-1"}), (["--limit", "7"], set(KNOWN))):
        file = tmp_path / "timeline.json"
        done = CliRunner().invoke(app, ["trace", *arguments, "--url", url, "--perfetto", str(file)])
        assert done.exit_code == 0, done.output
        assert "ui.perfetto.dev" in done.output
        events = json.loads(file.read_bytes())["traceEvents"]
        assert {event["args"]["request"] for event in events if event["ph"] == "X"} == requests


def test_a_timeline_that_cannot_be_written_is_an_error(url: str, tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())
    with pytest.raises(NoTrace, match="no trace yet"):
        write_perfetto(url, None, 2, tmp_path / "empty.json", quiet)
    assert not (tmp_path / "empty.json").exists()
    with pytest.raises(FileNotWritten, match="nowhere"):
        write_perfetto(url, "r-1", 1, tmp_path / "nowhere" / "x.json", quiet)


def test_a_limit_of_none_is_bad_usage() -> None:
    assert CliRunner().invoke(app, ["trace", "--limit", "0"]).exit_code == 2
