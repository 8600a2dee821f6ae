"""The life cycle against honest but chaotic workers; see chaotic_mesh."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.chaotic_checks import check, wind_down
from tests.property.chaotic_mesh import ChaoticMesh, WatchedCapacity, WatchedFixed


def run(seed: int, steps: int, policy: WatchedFixed | WatchedCapacity | None = None, *, chaos: bool) -> ChaoticMesh:
    mesh = ChaoticMesh(Random(seed), policy or WatchedFixed("full"), chaos=chaos)
    for _ in range(steps):
        mesh.step()
        check(mesh)
    wind_down(mesh)
    return mesh


@settings(max_examples=500, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 300))
def test_whatever_happens_every_request_ends_once_and_nothing_is_left(seed: int, steps: int) -> None:
    run(seed, steps, chaos=True)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 300))
def test_so_it_is_where_requests_wait_for_memory_and_pairs_are_weighed(seed: int, steps: int) -> None:
    run(seed, steps, WatchedCapacity(), chaos=True)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 300))
def test_by_capacity_every_request_finishes_but_those_refused_at_the_door(seed: int, steps: int) -> None:
    for client in run(seed, steps, WatchedCapacity(), chaos=False).clients.values():
        assert client.finished == (client.placement is not None)


def test_by_capacity_requests_reach_every_stage_too() -> None:
    clients = [
        client for seed in range(20) for client in run(seed, 300, WatchedCapacity(), chaos=True).clients.values()
    ]
    placed = [client.placement for client in clients if client.placement is not None and client.spec.split is None]
    assert sum(client.finished for client in clients) > len(clients) / 5
    assert min(sum(placement.split > 0 for placement in placed), sum(placement.split == 0 for placement in placed)) > 20


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 300))
def test_without_trouble_every_request_finishes_but_those_refused_at_the_door(seed: int, steps: int) -> None:
    for client in run(seed, steps, chaos=False).clients.values():
        assert client.finished == (client.placement is not None)


def test_chaos_lets_requests_reach_every_stage() -> None:
    """Guards the two above: a run that ends everything early would prove little."""
    clients = [client for seed in range(20) for client in run(seed, 300, chaos=True).clients.values()]
    assert sum(client.finished for client in clients) > len(clients) / 5
    assert sum(client.landed and not client.finished for client in clients) > 20
    assert sum(client.placement is None for client in clients) > 20
