"""What the gateway is told of a request's length, and what it predicts from that."""

from collections.abc import Sequence

import pytest

from common.errors import ConfigError
from common.messages.control import FinishReason, TokensEmitted
from services.scheduling.ledgers.output_lengths import OutputLengths
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.routing import MeshView
from services.scheduling.request import RequestSpec
from services.simulator.clients import Clients
from services.simulator.engine.events import SimulationError
from services.simulator.simulate import simulate
from services.simulator.simulation import Simulation
from services.simulator.workers import SimulatedDecode
from services.simulator.workload.requests import TracedRequest, Workload, scaled
from tests.unit.simulator.simulation_case import LinearTimer, cluster, decode, finished

ONE = cluster(decode("d", LinearTimer(base=1.0)))


def workload(*outputs: int, gap_s: float = 100.0) -> Workload:
    requests = [TracedRequest(gap_s * number, 4, output, user=f"u{number}") for number, output in enumerate(outputs)]
    return Workload("by hand", "a test", tuple(requests))


class Recorded(OutputLengths):
    """Predicts 7 and keeps what it hears."""

    def __init__(self) -> None:
        self.asked: list[RequestSpec] = []
        self.heard: list[tuple[str, int]] = []

    def observe(self, request: RequestSpec, tokens: int) -> None:
        self.heard.append((request.user, tokens))

    def predict(self, request: RequestSpec) -> float | None:
        self.asked.append(request)
        return 7.0


def served(work: Workload, max_tokens: int | None) -> tuple[Simulation, Recorded]:
    lengths = Recorded()
    made = Simulation(ONE, FixedPolicy(0), work, max_tokens=max_tokens, output_lengths=lengths, checked=True)
    made.run()
    return made, lengths


def test_without_a_cap_every_request_says_how_long_it_is() -> None:
    made, lengths = served(workload(3, 5), None)
    assert {request.max_tokens for request in lengths.asked} == {3, 5}
    assert finished(made) == [3.0, 105.0]


def test_a_cap_hides_the_length_and_changes_nothing_else() -> None:
    made, lengths = served(workload(3, 5), 900)
    assert {request.max_tokens for request in lengths.asked} == {900}
    assert finished(made) == [3.0, 105.0]


def test_what_ends_is_learnt_with_its_user() -> None:
    _, lengths = served(workload(3, 5), 900)
    assert lengths.heard == [("u0", 3), ("u1", 5)]
    assert {request.user for request in lengths.asked} == {"u0", "u1"}


def test_an_answer_longer_than_the_cap_is_refused() -> None:
    assert Clients(workload(3, 5), 5).spec(1).max_tokens == 5
    with pytest.raises(SimulationError, match="longest answer of 'by hand' has 5 tokens, and max_tokens is 4; raise"):
        Clients(workload(3, 5), 4)


class Watched(FixedPolicy):
    """Keeps what was expected of each request that was placed."""

    def __init__(self) -> None:
        super().__init__(0)
        self.expected: list[float | None] = []

    def place(self, request: RequestSpec, mesh: MeshView):  # type: ignore[no-untyped-def]
        self.expected.append(mesh.expected_output)
        return super().place(request, mesh)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("oracle", [3.0, 50.0, 20.0]),
        ("quantile", [None, 3.0, 50.0]),
        ("mean", [None, 3.0, 26.5]),
        ("class", [256.0, 3.0, 50.0]),
        ("max_tokens", [900.0] * 3),
    ],
)
def test_predictors_by_name(name: str, expected: Sequence[float | None]) -> None:
    policy = Watched()
    simulate(ONE, workload(3, 50, 20), policy, max_tokens=900, output_lengths=name)
    assert policy.expected == expected


def test_an_unknown_predictor() -> None:
    with pytest.raises(ConfigError, match="'tea leaves' is not known; choose one of class"):
        simulate(ONE, workload(3), FixedPolicy(0), output_lengths="tea leaves")


def test_shorter_requests_are_still_of_their_users() -> None:
    assert [request.user for request in scaled(workload(3, 5), 2).requests] == ["u0", "u1"]


# ---------------------------------------------------------------- which tokens are told


class Counting(FixedPolicy):
    """Wants to hear of tokens."""

    counts_tokens = True


def told(policy: FixedPolicy, *outputs: int, gap_s: float) -> list[TokensEmitted]:
    """Every message that the gateway hears."""
    made = Simulation(ONE, policy, workload(*outputs, gap_s=gap_s), max_tokens=900)
    heard: list[TokensEmitted] = []
    handle = made._lifecycle.handle

    def listen(event):  # type: ignore[no-untyped-def]
        if isinstance(event, TokensEmitted):
            heard.append(event)
        return handle(event)

    made._lifecycle.handle = listen  # type: ignore[method-assign]
    made.run()
    return heard


def test_a_policy_that_counts_tokens_hears_of_them_when_a_request_arrives() -> None:
    """A step takes a second. The second request comes in the middle of the 31st: 30 tokens of the first are there."""
    first, second = [item for message in told(Counting(0), 80, 2, gap_s=30.5) for item in message.items][:2]
    assert (first.request, first.first, len(first.tokens)) == ("0", 0, 1)
    assert (second.request, second.first, len(second.tokens)) == ("0", 1, 29)


def test_any_other_hears_of_the_first_and_then_of_the_rest() -> None:
    items = [item for message in told(FixedPolicy(0), 80, gap_s=1.0) for item in message.items]
    assert [(item.first, len(item.tokens), item.finish) for item in items] == [
        (0, 1, None),
        (1, 79, FinishReason.STOP),
    ]


def test_all_tokens_are_told_once_whoever_counts() -> None:
    for policy in (FixedPolicy(0), Counting(0)):
        items = [item for message in told(policy, 60, 90, 30, 75, gap_s=7.0) for item in message.items]
        for request, output in zip("0123", (60, 90, 30, 75), strict=True):
            pieces = [(item.first, len(item.tokens)) for item in items if item.request == request]
            assert sum(length for _, length in pieces) == output
            assert [first for first, _ in pieces] == [
                sum(length for _, length in pieces[:n]) for n in range(len(pieces))
            ]


def test_a_worker_without_news_says_nothing() -> None:
    made = Simulation(ONE, Counting(0), workload(3))
    worker = made.workers["d"]
    assert isinstance(worker, SimulatedDecode)
    assert worker.told_by(0.0) is None
