"""How one instance is spread over devices of a machine."""

import msgspec


class Strategy(msgspec.Struct, frozen=True, order=True):
    """Tensor parallelism within a stage, pipeline parallelism over stages."""

    tp: int = 1
    pp: int = 1

    @property
    def devices(self) -> int:
        """Devices that one instance takes."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"TP{self.tp}" if self.pp == 1 else f"TP{self.tp} PP{self.pp}"
