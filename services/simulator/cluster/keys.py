"""The keys of a cluster file, their types and defaults; docs/simulator.md explains them."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from common.config.types import DType, Positive, Split
from common.ids import InstanceId
from common.messages.control import Role
from services.scheduling.policies.balancer import Balance

TUNED: Literal["tuned"] = "tuned"

PositiveNumber = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
Slots = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class LinkKeys(_Section, frozen=True):
    """The link that each prefill instance sends its KV over."""

    gbit_per_s: PositiveNumber = 100.0
    """10^9 bits per second of payload."""
    latency_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10e-6
    known: bool = True
    """Whether the policies are told both figures, as after a self-test of the links."""


class AssumedKeys(_Section, frozen=True):
    """Figures of a catalogue device that are less certain than others, replaced."""

    compute_efficiency: Share | None = None
    memory_efficiency: Share | None = None
    step_overhead_s: Annotated[float, msgspec.Meta(ge=0, le=60)] | None = None


class InstanceKeys(_Section, frozen=True):
    """One instance, or `count` like it. Exactly one of `device` and `profile` says how long its steps take."""

    id: InstanceId
    role: Role
    device: str | None = None
    """A name of the catalogue (docs/devices.md): steps take what the roofline says, and policies see a linear fit."""
    profile: str | None = None
    """A file that `pdmesh profile` wrote, beside this one or absolute: both the steps and what policies see of them."""
    assume: AssumedKeys = AssumedKeys()
    """With `device`."""
    tp: Positive = 1
    """With `device`: devices of one stage, which divide its heads, its KV and its vocabulary among them."""
    pp: Positive = 1
    """With `device`: stages, which divide the layers."""
    count: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    """Above 1 the instances are called ID-0, ID-1, …"""
    budget: Positive = 512
    """As decode instance: tokens per step, decodes first; with stages, of each micro-batch."""
    prefill_chunk: Positive | None = None
    """As prefill instance: tokens per step; null computes the whole prompt in one step."""
    max_batch: Positive = 256
    """Sequences that hold KV at once."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    kv_memory: str | Positive | None = None
    """Memory for KV: bytes with an optional unit."""
    kv_tokens: Positive | None = None
    """The same in tokens. Without either: what the device's memory leaves, or what the profile says."""
    utilisation: Share | None = None
    """Share of the device's memory that the engine takes; null is 0.9."""
    weight: PositiveNumber | None = None
    """Policy dp: its share of the requests, against the others' weights; null everywhere: by what its steps cost."""
    slowdown: PositiveNumber = 1.0
    """Steps take so many times what device or profile says; the policies know."""


class SystemKeys(_Section, frozen=True):
    """A policy on the file's instances, under a name: what is compared. What is not set is as in the file for all."""

    name: str
    policy: str
    roles: dict[str, Role | None] = {}
    """By id, in the place of the instance's own role; null leaves the instance out."""
    weights: dict[str, PositiveNumber] | Literal["tuned"] | UnsetType = UNSET
    """Policy dp: by id, in the place of the instances' own; tuned: those with the most throughput."""
    prefill_slots: Slots | UnsetType = UNSET
    decode_batches: Slots | UnsetType = UNSET
    split: Split | Literal["tuned"] | UnsetType = UNSET
    balance: Balance | UnsetType = UNSET


class ClusterKeys(_Section, frozen=True):
    """One cluster file."""

    model: str
    """A name of the catalogue of models, or the path of a Hugging Face config.json."""
    instances: Annotated[tuple[InstanceKeys, ...], msgspec.Meta(min_length=1)]
    fingerprint: str | None = None
    """Of `model`, as measured profiles name it; null: read where config.json lies beside its safetensors."""
    dtype: DType = "float16"
    """Of weights, computation and KV."""
    devices: str | None = None
    """A TOML file of devices beside those of the catalogue, or a folder of such files."""
    link: LinkKeys = LinkKeys()
    prefill_slots: Slots = 2
    """Requests at one prefill instance at a time."""
    decode_batches: Slots = 2
    """Requests given to a decode instance, in units of its max_batch."""
    split: Split | Literal["tuned"] = "full"
    """Policy fixed: as in mesh.yaml, or the share with the most throughput."""
    balance: Balance = Balance.FINISH
    """Policy cronus: for the earliest first token (finish), or for equal stages."""
    systems: tuple[SystemKeys, ...] = ()
    """Without any, the policies of the command line are used with the roles as they are written."""
