"""Who may come in by shm, and from where."""

import os

import pytest

from tests.contract.holdings import nothing_left
from transfer.backends.base import Link
from transfer.backends.shm.backend import ShmBackend
from transfer.backends.shm.place import Place
from transfer.errors import PeerLost
from transfer.testing import eventually


async def test_a_process_of_another_user_is_turned_away() -> None:
    backend, stranger = ShmBackend(), frozenset({os.geteuid() + 1})
    accepted: list[Link] = []
    async with nothing_left():
        listener = await ShmBackend(users=stranger).listen(accepted.append)
        link = await backend.connect(listener.endpoint)
        with pytest.raises(PeerLost):
            await link.receive()
        await link.close()
        await listener.close()
        assert accepted == []
        listener = await backend.listen(accepted.append)
        with pytest.raises(PeerLost, match="trusted are"):
            await ShmBackend(users=stranger).connect(listener.endpoint)
        await eventually(lambda: len(accepted) == 1)
        await accepted[0].close()
        await listener.close()


async def test_another_host_is_out_of_reach() -> None:
    listener = await ShmBackend().listen(lambda link: None)
    elsewhere = ShmBackend(place=Place("another"))
    assert ShmBackend().reaches(listener.endpoint)
    assert not elsewhere.reaches(listener.endpoint)
    with pytest.raises(PeerLost, match="another host"):
        await elsewhere.connect(listener.endpoint)
    await listener.close()


@pytest.mark.parametrize("endpoint", ["shm://", "shm://place", "shm://place/../up", "tcp://127.0.0.1:1"])
async def test_not_an_endpoint(endpoint: str) -> None:
    assert not ShmBackend().reaches(endpoint)
    with pytest.raises(ValueError, match="not an shm endpoint"):
        await ShmBackend().connect(endpoint)
