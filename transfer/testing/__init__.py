"""What every backend must pass: subclass `BackendContract`, give it a `backend` fixture, run pytest.

    class TestMine(BackendContract):
        @pytest.fixture
        def backend(self) -> Backend:
            return MyBackend()

The same instance serves both sides; asyncio_mode must be auto.  Also here is what such tests are made of, for tests of
one's own.
"""

import pytest

from transfer.backends.base import Backend
from transfer.testing.faults import FaultContract
from transfer.testing.handoffs import HandoffContract
from transfer.testing.mesh import (
    D_GENERATION,
    DEADLINE_S,
    NUM_BLOCKS,
    NUM_TOKENS,
    P_GENERATION,
    Mesh,
    eventually,
    example_layout,
    example_limits,
    kv_of_token,
    make_ready,
    mesh,
    peer_ticket,
    random_memory,
)
from transfer.testing.puppets import SourcePuppet, TakerPuppet

__all__ = [
    "DEADLINE_S",
    "D_GENERATION",
    "NUM_BLOCKS",
    "NUM_TOKENS",
    "P_GENERATION",
    "BackendContract",
    "Mesh",
    "SourcePuppet",
    "TakerPuppet",
    "eventually",
    "example_layout",
    "example_limits",
    "kv_of_token",
    "make_ready",
    "mesh",
    "peer_ticket",
    "random_memory",
]


class BackendContract(HandoffContract, FaultContract):
    """Bytes arrive exactly; every end is clean, typed, and harms nobody else."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise NotImplementedError("a subclass of BackendContract gives the backend")
