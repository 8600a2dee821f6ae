"""A mesh.yaml as a system of the simulator: what its instances' profiles say that it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.config.sizes import parse_size
from common.config.types import DType, InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.kv.layout import KVDType
from common.messages.control import Role
from services.scheduling.profiles.profile import Profile, ProfileError, decode_profile
from services.simulator.cluster.cluster import Cluster, SimulatedInstance
from services.simulator.hardware.fitted import FittedTimer
from services.simulator.links import LinkSpec
from services.simulator.runs.system import System

LOCAL_LINK = LinkSpec(1e9, 1e-3)
"""Between processes of one machine; at tens of kilobytes per token it hardly counts."""


class ModelFacts(msgspec.Struct, frozen=True):
    """What the config.json of a model folder says of its KV and its tokens."""

    layers: int
    kv_values: int | None
    """Numbers in the KV of one token, over all layers; None: a model without attention, as the deterministic one."""
    vocab_size: int


def read_model_facts(folder: Path) -> ModelFacts:
    """From `folder`/config.json, of a multi-modal model its text part. Raises ConfigError."""
    try:
        config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
        config = config.get("text_config", config)
        vocab_size = int(config["vocab_size"])
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{str(folder)!r} holds no usable config.json: {error!r}") from error
    if "num_hidden_layers" not in config or "num_attention_heads" not in config:
        return ModelFacts(layers=1, kv_values=None, vocab_size=vocab_size)
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return ModelFacts(layers, 2 * layers * kv_heads * head_dim, vocab_size)


def read_profiles(config: MeshConfig) -> dict[InstanceId, Profile]:
    """The profiles that the instances of `config` name; instances without one are not in it. Raises ProfileError."""
    return {
        instance.id: _read_profile(instance.profile) for instance in config.instances if instance.profile is not None
    }


def mesh_system(config: MeshConfig, name: str, profiles: Mapping[InstanceId, Profile], model: ModelFacts) -> System:
    """The system that `config` describes; `profiles` has one for each instance.

    Its instances take as long as their profiles say, at the slowdown that `config` gives them, and hold what
    `kv_memory` holds.  Raises ProfileError where neither the model nor a profile says how much that is.
    """
    instances = tuple(_instance(config, instance, profiles[instance.id], model) for instance in config.instances)
    dtypes = [_dtype(config, instance) for instance in config.instances]
    # Where two ends differ, the narrower type travels.
    narrowest = min(dtypes, key=lambda dtype: KVDType(dtype).size_bytes)
    return System(
        name=name,
        policy=config.policy,
        cluster=Cluster(instances, model.layers, _token_bytes(model, narrowest) or 4 * model.layers, LOCAL_LINK),
        entries={instance.name: instance.name for instance in instances},
        split=config.split,
        output_lengths=config.output_lengths,
        prefill_slots=config.gateway.prefill_slots,
    )


def _instance(config: MeshConfig, instance: InstanceConfig, profile: Profile, model: ModelFacts) -> SimulatedInstance:
    # As a worker does: the emulation stretches every step alike, so one profile serves for each slowdown.
    costs = profile.costs.scaled(instance.emulate.slowdown / profile.slowdown)
    return SimulatedInstance(
        name=instance.id,
        role=instance.role,
        timer=FittedTimer(costs, instance.role),
        kv_tokens=_kv_tokens(config, instance, profile, model),
        costs=costs,
        budget=instance.prefill_chunk if instance.role is Role.PREFILL else instance.budget,
        max_batch=instance.max_batch,
        block_size=instance.block_size,
        weight=instance.weight,
    )


def _kv_tokens(config: MeshConfig, instance: InstanceConfig, profile: Profile, model: ModelFacts) -> int:
    token_bytes = _token_bytes(model, _dtype(config, instance))
    if token_bytes is not None:
        return parse_size(instance.kv_memory) // (instance.block_size * token_bytes) * instance.block_size
    if profile.kv_capacity_tokens is None:
        raise ProfileError(f"the profile of {instance.id} does not say how many tokens it holds; profile it again")
    return profile.kv_capacity_tokens


def _dtype(config: MeshConfig, instance: InstanceConfig) -> DType:
    return instance.dtype or config.dtype


def _token_bytes(model: ModelFacts, dtype: DType) -> int | None:
    return None if model.kv_values is None else model.kv_values * KVDType(dtype).size_bytes


def _read_profile(path: str) -> Profile:
    try:
        return decode_profile(Path(path).read_bytes(), path)
    except OSError as error:
        raise ProfileError(f"profile {path!r} cannot be read: {error.strerror}; `pdmesh profile` writes it") from error
