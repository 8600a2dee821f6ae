"""Where a request runs."""

import msgspec

from common.ids import InstanceId


class Placement(msgspec.Struct, frozen=True):
    """Where a request runs. `kv_bytes` are the bytes of KV planned on the wire."""

    prefill: InstanceId | None
    """None exactly where split is 0: D computes the whole prompt."""
    decode: InstanceId
    split: int
    kv_bytes: int

    def header(self) -> str:
        """The value of x-pdmesh-placement."""
        return f"prefill={self.prefill or '-'}; decode={self.decode}; split={self.split}; kv-bytes={self.kv_bytes}"
