"""How many tokens of KV a device holds beside a model."""

from math import ceil

from common.config.types import DType
from common.errors import ConfigError
from services.simulator.hardware.device import DeviceSpec
from services.simulator.hardware.models import ModelSpec

UTILISATION = 0.9
"""Share of a device's memory that an engine takes: the default of vLLM's gpu_memory_utilization."""
RUNTIME_BYTES = 1_500_000_000
"""Taken by context, kernels, activations and fragments: ours; AIConfigurator reserves 3.5 GB to be safe."""


class InfeasibleError(ConfigError):
    """A model does not fit a device; the message says by how much and what would help."""


def kv_capacity_tokens(
    device: DeviceSpec,
    model: ModelSpec,
    dtype: DType,
    *,
    utilisation: float = UTILISATION,
    runtime_bytes: int = RUNTIME_BYTES,
) -> int:
    """Tokens of KV that fit: (utilisation · memory - weights - runtime) / bytes per token; always 1 or more.

    Raises InfeasibleError where the weights leave no room, ConfigError for a utilisation outside (0, 1].
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"utilisation is {utilisation!r}; give a share of the memory above 0 and at most 1")
    usable = utilisation * device.memory_bytes - runtime_bytes
    room = usable - model.weight_bytes(dtype)
    tokens = int(room // model.kv_bytes_per_token(dtype))
    if tokens < 1:
        raise InfeasibleError(_explain(device, model, dtype, usable, utilisation, runtime_bytes))
    return tokens


def _explain(
    device: DeviceSpec, model: ModelSpec, dtype: DType, usable: float, utilisation: float, runtime_bytes: int
) -> str:
    weights = model.weight_bytes(dtype)
    needed = weights + model.kv_bytes_per_token(dtype)
    remedies = [f"take a device with more than {_gb((needed + runtime_bytes) / utilisation)}"]
    if usable > 0:
        remedies.append(f"share the model among at least {ceil(needed / usable)} of these")
    if dtype == "float32":
        remedies.append("use a 16-bit dtype")
    return (
        f"{model.name} in {dtype} does not fit {device.name}: {_gb(weights)} of weights and {_gb(runtime_bytes)} for "
        f"the runtime are {_gb(needed - usable)} more than {utilisation:g} of its {_gb(device.memory_bytes)}; "
        f"{', or '.join(remedies)}"
    )


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.2f} GB"
