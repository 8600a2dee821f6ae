"""The keys of a plan file, their types and defaults; docs/planning.md explains them."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from common.config.types import DType, EmulateConfig, Positive
from common.kv.layout import KVOrder
from services.planner.request import Objective
from services.simulator.cluster.keys import AssumedKeys, PositiveNumber, Share

Count = Annotated[int, msgspec.Meta(ge=1, le=65536)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Slowdown = Annotated[float, msgspec.Meta(ge=1, le=1_000_000)]
Tokens = Annotated[float, msgspec.Meta(ge=1, le=1e7)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class HostLinkKeys(_Section, frozen=True):
    """What a machine sends KV to other machines over, and receives it: one link for all its devices."""

    gbit_per_s: PositiveNumber = 100.0
    """10^9 bits per second of payload, in one direction."""
    latency_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 10e-6


class TemplateKeys(_Section, frozen=True):
    """What mesh.yaml is to say of every instance of a machine, in mesh.yaml's words. What is not set is left out there.

    The sizes of an engine (Sizes) may stand here or beside `instance`; the planner reads either.
    """

    device: str | UnsetType = UNSET
    """cpu, cuda or rocm, without a number: instances of one machine get devices in turn. Else by the vendor of the
    machine's `device`; cpu where that says nothing."""
    dtype: DType | UnsetType | None = UNSET
    """Where it is not the file's: KV is cast on its way between instances."""
    order: KVOrder | UnsetType = UNSET
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | UnsetType | None = UNSET
    cpu_affinity: tuple[int, ...] | UnsetType | None = UNSET
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] | UnsetType = UNSET
    kv_memory: str | Positive | UnsetType = UNSET
    prefill_chunk: Positive | UnsetType | None = UNSET
    max_batch: Positive | UnsetType = UNSET
    budget: Positive | UnsetType = UNSET
    prefix_cache: bool | UnsetType = UNSET
    self_profile: bool | UnsetType = UNSET
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | UnsetType | None = UNSET
    emulate: EmulateConfig | UnsetType = UNSET
    """Its `slowdown` is all that is emulated: the profile's, times that beside `instance`."""


class MachineKeys(_Section, frozen=True):
    """`count` machines that are alike. At least one of `device` and `profiles` says how long their steps take."""

    name: str
    """Of the pool that they make: the ids of its instances begin with it."""
    device: str | None = None
    """A name of the catalogue (docs/devices.md): every strategy, by its figures."""
    profiles: tuple[str, ...] = ()
    """Files that `pdmesh profile` wrote, beside this one or absolute, one for each measured strategy: instead of the
    catalogue's figures for these strategies."""
    count: Count = 1
    devices: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """In each machine."""
    price: Price | None = None
    """Per hour, of one machine; null: of its devices in the price list that `prices` names."""
    host_link: HostLinkKeys = HostLinkKeys()
    intra_gbit_per_s: PositiveNumber | None = None
    """Between two devices of one machine, in one direction; null: the catalogue's interconnect, else its host link."""
    assume: AssumedKeys = AssumedKeys()
    """With `device`: figures that are less certain than others, replaced."""
    utilisation: Share | None = None
    """With `device`: share of its memory that an engine takes; null is 0.9."""
    kv_memory: str | Positive | UnsetType = UNSET
    """Memory for KV of one instance, over all its devices: bytes with an optional unit."""
    kv_tokens: Positive | None = None
    """The same in tokens. Without either: what the device's memory leaves, or what the profile says."""
    budget: Positive | UnsetType = UNSET
    """As decode instance: tokens per step, decodes first; 512."""
    prefill_chunk: Positive | UnsetType | None = UNSET
    """As prefill instance: tokens per step; null computes the whole prompt in one step."""
    max_batch: Positive | UnsetType = UNSET
    """Sequences that hold KV at once; 256. A plan may lower it, to keep a limit."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] | UnsetType = UNSET
    """Tokens; 16."""
    slowdown: Slowdown | UnsetType = UNSET
    """Steps take so many times what device or profile say: mesh.yaml emulates it, beside what the profile's instance
    emulated; 1."""
    instance: TemplateKeys = TemplateKeys()

    def sizes(self) -> "Sizes":
        """What an engine of this machine is sized to, wherever the keys stand. Contradictions are for plan_rules."""
        found: dict[str, Any] = {}
        for field in Sizes.__struct_fields__:
            given = [value for value in self.given(field) if value is not UNSET]
            found |= {field: given[0]} if given else {}
        return Sizes(**found)

    def given(self, key: str) -> tuple[Any, Any]:
        """What stands beside `instance` and in it."""
        return getattr(self, key), getattr(self.instance, key)


class Sizes(_Section, frozen=True):
    """The size of one engine, and what it is without a word."""

    block_size: int = 16
    kv_memory: str | int | None = None
    prefill_chunk: int | None = None
    max_batch: int = 256
    budget: int = 512


class LengthKeys(_Section, frozen=True):
    """Tokens of prompts, or of outputs: a lognormal distribution with this mean. Without percentiles all are equal."""

    mean: Tokens
    p50: Tokens | None = None
    p99: Tokens | None = None


class WorkloadKeys(_Section, frozen=True):
    """A trace, or lengths in a few figures: either `trace`, or `prompt` and `output`."""

    trace: str | None = None
    """`synthetic` or `synthetic:SHAPE`, the path of a trace, or the name of a public one (docs/data.md)."""
    prompt: LengthKeys | None = None
    output: LengthKeys | None = None
    requests: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """The first so many; null: all of a trace, else 1,000."""
    divide: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """Every length is divided by this and rounded up."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


class LimitKeys(_Section, frozen=True):
    """What users may be made to wait, for 99 of 100 requests."""

    ttft_p99_s: Seconds | None = None
    """From arrival to first token."""
    tpot_p99_s: Seconds | None = None
    """Mean gap between the tokens of a request."""


class PlanKeys(_Section, frozen=True):
    """One plan file."""

    model: str
    """A name of the catalogue of models, or the path of a Hugging Face config.json; weights are not needed."""
    machines: Annotated[tuple[MachineKeys, ...], msgspec.Meta(min_length=1)]
    workload: WorkloadKeys
    mesh_model: str | None = None
    """What mesh.yaml calls the model; null: as `model`."""
    fingerprint: str | None = None
    """Of `model`, as measured profiles name it; null: read where config.json lies beside its safetensors."""
    dtype: DType = "float16"
    """Of weights, computation and KV."""
    devices: str | None = None
    """A TOML file, or a folder of them, with devices of your own: beside the catalogue's, in the place of those of the
    same name."""
    rate: Rate | None = None
    """Requests per second that are wanted; null: as many as can be."""
    limits: LimitKeys = LimitKeys()
    objective: Objective | None = None
    """null: goodput with limits, throughput without."""
    budget: Price | None = None
    """Most price per hour."""
    prices: str | None = None
    """A price list of the catalogue (docs/devices.md) for machines without a `price`."""
