"""The in-memory twin keeps the contract, and its faults do what they say."""

import pytest

from common.kv.ownership import TakerFailed
from transfer.backends.base import Backend
from transfer.backends.inproc import InprocBackend, InprocFaults
from transfer.errors import Corrupt, PeerLost, TimedOut, TransferError
from transfer.testing import BackendContract, eventually, make_ready, mesh


class TestInproc(BackendContract):
    @pytest.fixture
    def backend(self) -> Backend:
        return InprocBackend()


@pytest.mark.parametrize("at", [0, 1, 5, 14])
@pytest.mark.parametrize(
    ("fault", "error"), [("corrupt_write", Corrupt), ("drop_at_write", PeerLost), ("stall_at_write", TimedOut)]
)
async def test_faults(fault: str, at: int, error: type[TransferError]) -> None:
    async with mesh(InprocBackend(InprocFaults(**{fault: at}))) as made:
        offer = made.offer()
        with pytest.raises(error):
            await made.take()
        assert isinstance(await offer.ended(), TakerFailed)
        assert made.source.payload_bytes_sent >= at * 1000 // 2


async def test_a_slow_wire_loses_nothing() -> None:
    async with mesh(InprocBackend(InprocFaults(write_delay_s=0.02))) as made:
        offer, take = made.offer(layers=1), made.take()
        await eventually(lambda: made.sink.payload_bytes_received > 0)
        make_ready(offer, 1, 4)
        await take
        made.assert_arrived()
