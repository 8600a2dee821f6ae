"""What holds of a chaotic mesh after every event, and at the end."""

from services.scheduling.ledgers.work_ledger import Work
from services.scheduling.lifecycle.events import Holdings
from tests.property.chaotic_mesh import PROMPT, ChaoticMesh, Client, WatchedFixed
from tests.property.honest_workers import DECODES, LIMITS, MAX_TOKENS, PREFILLS


def check(mesh: ChaoticMesh) -> None:
    check_ends(mesh)
    check_bounds(mesh)
    check_holdings(mesh)
    check_ledgers(mesh)
    if isinstance(mesh.policy, WatchedFixed):
        check_that_nobody_waits_beside_a_free_place(mesh)


def wind_down(mesh: ChaoticMesh) -> None:
    """Let every message arrive and every worker finish what it can; the deadline ends the rest."""
    mesh.exchange_messages()
    check_that_ended_requests_are_held_nowhere(mesh)
    while mesh.work_honestly():
        mesh.exchange_messages()
        check(mesh)
    if mesh.chaos:
        mesh.pass_time(1000.0)
        mesh.exchange_messages()
    check_that_ended_requests_are_held_nowhere(mesh)
    assert mesh.lifecycle.holdings() == Holdings(requests=0, queued=0, slots=0)
    assert mesh.lifecycle.is_idle()
    mesh.lifecycle.not_ready()
    assert all(view.work == Work() for view in (*mesh.policy.seen.prefills, *mesh.policy.seen.decodes))
    for client in mesh.clients.values():
        assert client.ends == 1 or client.gone


def check_ends(mesh: ChaoticMesh) -> None:
    for client in mesh.clients.values():
        assert client.ends <= 1
        if client.finished:
            assert all(len(seen) == MAX_TOKENS for seen in client.tokens.values())


def check_bounds(mesh: ChaoticMesh) -> None:
    assert mesh.lifecycle.holdings().queued <= LIMITS.queue
    assert mesh.lifecycle.holdings().slots == len(mesh.slots)
    for name in mesh.workers:
        assert mesh.outstanding(name) <= mesh.most(name)


def check_holdings(mesh: ChaoticMesh) -> None:
    holdings = mesh.lifecycle.holdings()
    unended = mesh.unended()
    assert holdings.requests + holdings.queued == len(unended)
    assert holdings.queued == sum(client.placement is None for client in unended)


def check_ledgers(mesh: ChaoticMesh) -> None:
    """What the policy sees of every D is what its clients still wait for, counted anew."""
    mesh.lifecycle.check()
    mesh.lifecycle.not_ready()
    for view in mesh.policy.seen.decodes:
        clients = [
            client
            for client in mesh.unended()
            if client.placement is not None and client.placement.decode == view.member.instance
        ]
        seen = [len(tokens) for client in clients for tokens in open_choices(client)]
        splits = [client.placement.split for client in clients if client.placement and not client.tokens]
        assert view.work.prompt_tokens == sum(len(PROMPT) - split for split in splits)
        assert view.work.output_tokens == sum(MAX_TOKENS - count for count in seen)
        assert view.work.output_squares == sum((MAX_TOKENS - count) ** 2 for count in seen)
        assert view.work.kv_tokens == sum(seen) + len(clients) * len(PROMPT)
        assert view.work.mix.sequences == sum(client.spec.choices for client in clients)


def open_choices(client: Client) -> list[list[int]]:
    return [client.tokens.get(number, []) for number in range(client.spec.choices) if number not in client.finishes]


def check_that_nobody_waits_beside_a_free_place(mesh: ChaoticMesh) -> None:
    has_slot = any(mesh.outstanding(name) < mesh.most(name) for name in PREFILLS if name in mesh.workers)
    has_room = any(mesh.outstanding(name) < mesh.most(name) for name in DECODES if name in mesh.workers)
    for client in mesh.unended():
        if client.placement is None:
            assert not (has_room and (has_slot or client.spec.split == 0)), f"{client} waits for nothing"


def check_that_ended_requests_are_held_nowhere(mesh: ChaoticMesh) -> None:
    for worker in mesh.workers.values():
        for request in (*worker.prefills, *worker.decodes):
            client = mesh.clients[request]
            assert not client.gone, f"{worker.life} was not told that the client of {request} is gone"
            assert client.ends == 0, f"{worker.life} was not told that {request} has ended"
