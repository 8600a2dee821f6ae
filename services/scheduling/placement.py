"""Where a request runs, and what was predicted when that was decided."""

import msgspec

from common.ids import InstanceId
from services.scheduling.policies.balancer import Split


class Candidate(msgspec.Struct, frozen=True):
    """A pair that was looked at, with the best split on it. Without a P the split is what D holds already."""

    prefill: InstanceId | None
    decode: InstanceId
    split: Split


class Placement(msgspec.Struct, frozen=True):
    """Where a request runs. `kv_bytes` are the bytes of KV planned on the wire."""

    prefill: InstanceId | None
    """None exactly where split is 0: D computes the whole prompt."""
    decode: InstanceId
    split: int
    kv_bytes: int
    candidates: tuple[Candidate, ...] = ()
    """What was weighed, the chosen one first; empty under a policy that predicts nothing."""

    def header(self) -> str:
        """The value of x-pdmesh-placement."""
        return f"prefill={self.prefill or '-'}; decode={self.decode}; split={self.split}; kv-bytes={self.kv_bytes}"
