"""How many tokens of KV an instance holds beside its model."""

from collections.abc import Sequence

import msgspec

from common.config.types import DType
from common.errors import ConfigError
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.models import ModelSpec
from services.simulator.hardware.stages import require_suitable, stage_models
from services.simulator.hardware.strategy import Strategy, strategies

UTILISATION = 0.9
"""Share of a device's memory that an engine takes: the default of vLLM's gpu_memory_utilization."""
RUNTIME_BYTES = 1_500_000_000
"""Of each device, for context, kernels, activations and fragments: ours; AIConfigurator reserves 3.5 GB to be safe."""
_MOST_DEVICES = 64
"""Of a machine that is proposed."""


class InfeasibleError(ConfigError):
    """A model does not fit a device; the message says by how much and what would help."""


def kv_capacity_tokens(
    device: DeviceSpec,
    model: ModelSpec,
    dtype: DType,
    *,
    strategy: Strategy = Strategy(),
    utilisation: float = UTILISATION,
    runtime_bytes: int = RUNTIME_BYTES,
    among: Sequence[DeviceSpec] = (),
) -> int:
    """Tokens of KV that an instance over `strategy` holds; always 1 or more.

    On each of its devices (utilisation · memory - weights - runtime) / bytes per token, of what that device has of
    layers, heads and vocabulary; the one with the least room decides.  Raises InfeasibleError where the weights leave
    no room, which names a device of `among` with more; ConfigError for a utilisation outside (0, 1] or a strategy that
    does not suit the model.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"utilisation is {utilisation!r}; give a share of the memory above 0 and at most 1")
    require_suitable(model, strategy)
    usable = utilisation * device.memory_bytes - runtime_bytes
    room = _room(usable, model, dtype, strategy)
    if room < 1:
        shortage = _Shortage(device, model, dtype, strategy, utilisation, runtime_bytes)
        raise InfeasibleError(shortage.explain(among))
    return room


def _room(usable: float, model: ModelSpec, dtype: DType, strategy: Strategy) -> int:
    tp = strategy.tp
    return min(
        int((usable - stage.rank_weight_bytes(dtype, tp)) // stage.rank_kv_bytes_per_token(dtype, tp))
        for stage in stage_models(model, strategy.pp)
    )


class _Shortage(msgspec.Struct, frozen=True):
    """What is missing where a model does not fit, and what would help."""

    device: DeviceSpec
    model: ModelSpec
    dtype: DType
    strategy: Strategy
    utilisation: float
    runtime_bytes: int

    def explain(self, among: Sequence[DeviceSpec]) -> str:
        """In a sentence."""
        device, strategy = self.device, self.strategy
        missing = self._needed - self._usable(device)
        where, each = device.name, ""
        if strategy.devices > 1:
            where, each = f"{strategy.devices} × {device.name} with {strategy}", "on each "
        return (
            f"{self.model.name} in {self.dtype} does not fit {where}: {each}{_gb(self._parts[0])} of weights and "
            f"{_gb(self.runtime_bytes)} for the runtime are {_gb(missing)} more than {self.utilisation:g} of its "
            f"{_gb(device.memory_bytes)}; {', or '.join(self._remedies(among))}"
        )

    @property
    def _parts(self) -> tuple[int, int]:
        """Bytes of weights, and of the KV of one token, on each device of the stage that has most."""
        dtype, tp = self.dtype, self.strategy.tp
        stages = stage_models(self.model, self.strategy.pp)
        return max(((s.rank_weight_bytes(dtype, tp), s.rank_kv_bytes_per_token(dtype, tp)) for s in stages), key=sum)

    @property
    def _needed(self) -> int:
        return sum(self._parts)

    def _remedies(self, among: Sequence[DeviceSpec]) -> list[str]:
        remedies = []
        if (spread := self._next_strategy()) is not None:
            remedies.append(f"share the model among {spread.devices} of these with {spread}")
        least = _gb((self._needed + self.runtime_bytes) / self.utilisation)
        larger = self._larger(among)
        remedies.append(f"take a device with more than {least}" + (f" such as {larger.name}" if larger else ""))
        if self.dtype == "float32":
            remedies.append("use a 16-bit dtype")
        return remedies

    def _next_strategy(self) -> Strategy | None:
        """With the fewest devices, of those with more than now."""
        usable = self._usable(self.device)
        for strategy in strategies(self.model, _MOST_DEVICES):
            more = strategy.devices > self.strategy.devices
            if more and _room(usable, self.model, self.dtype, strategy) >= 1:
                return strategy
        return None

    def _larger(self, among: Sequence[DeviceSpec]) -> DeviceSpec | None:
        fitting = [device for device in among if self._usable(device) >= self._needed]
        able = [device for device in fitting if device.bf16 or self.dtype != "bfloat16"]
        return min(able, key=lambda device: device.memory_bytes, default=None)

    def _usable(self, device: DeviceSpec) -> float:
        return self.utilisation * device.memory_bytes - self.runtime_bytes


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
