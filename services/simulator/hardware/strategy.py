"""How one instance is spread over devices of a machine, and which ways suit a model."""

import msgspec

from services.simulator.hardware.models import ModelSpec


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


def candidates(devices: int) -> tuple[Strategy, ...]:
    """Every strategy of at most `devices` devices whose degrees are powers of two, the fewest devices and stages first.

    Whether one suits a model and a machine is `unsuitable`'s to say.
    """
    degrees = [1 << power for power in range(devices.bit_length()) if 1 << power <= devices]
    found = [Strategy(tp, pp) for tp in degrees for pp in degrees if tp * pp <= devices]
    return tuple(sorted(found, key=lambda strategy: (strategy.devices, strategy.pp)))


def strategies(model: ModelSpec, devices: int) -> tuple[Strategy, ...]:
    """The candidates of a machine of `devices` devices that suit `model`, in the order of `candidates`."""
    return tuple(strategy for strategy in candidates(devices) if unsuitable(model, strategy, devices) is None)


def unsuitable(model: ModelSpec, strategy: Strategy, devices: int) -> str | None:
    """Why `strategy` cannot be used for `model` on machines of `devices` devices; None: it can.

    Degrees are powers of two, and their product divides the devices of a machine: then instances of any sizes fill a
    machine exactly when their devices add up to its own, so that whoever packs them needs to count devices only.
    An instance never leaves its machine.  Query heads are divided evenly; KV heads are too, or where there are fewer
    of them than ranks each is held by as many ranks as all others.
    """
    tp, pp = strategy.tp, strategy.pp
    if not _is_power_of_two(tp) or not _is_power_of_two(pp):
        return f"tp {tp} and pp {pp}: each must be a power of two"
    if devices % strategy.devices:
        return f"{strategy} takes {strategy.devices} devices, which do not divide the {devices} of a machine"
    if model.heads % tp:
        return f"TP{tp} does not divide the {model.heads} heads of {model.name}"
    if model.kv_heads % tp and tp % model.kv_heads:
        return f"TP{tp} neither divides the {model.kv_heads} KV heads of {model.name} nor is a multiple of them"
    if pp > model.layers:
        return f"PP{pp} is more stages than the {model.layers} layers of {model.name}"
    return None


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
