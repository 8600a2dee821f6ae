"""The keys of mesh.yaml, their types and defaults. Nearly every key has a default; an unknown key is an error."""

from typing import Annotated, Literal

import msgspec

from common.ids import InstanceId
from common.kv.layout import KVOrder
from common.messages.control import Role

DType = Literal["float32", "bfloat16", "float16"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0, le=31_536_000)]
"""At most a year: timers take no infinity."""
Split = Literal["full"] | Annotated[int, msgspec.Meta(ge=0)] | Annotated[float, msgspec.Meta(ge=0, le=1)]
"""full = L-1; an integer = tokens (clamped to L-1); a float f in [0, 1] = round(f·(L-1)). 1 is a token, 1.0 is all."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class GatewayConfig(_Section, frozen=True):
    """The HTTP side and the membership of the mesh."""

    http: str = "127.0.0.1:8000"
    """host:port of the OpenAI-compatible API; port 0 takes a free one."""
    control: str = "tcp://127.0.0.1:5700"
    """ZeroMQ endpoint where workers join."""
    control_keys: str | None = None
    """Folder of the keys that `pdmesh keys init` makes, for encrypted connections to `control` that prove who joins;
    null: none. Needed where `control` is not this machine's loopback or an ipc:// path."""
    insecure: bool = False
    """Whether `control` may be open to other machines without keys: whoever reaches it can then join, and read every
    prompt."""
    deadline_s: PositiveSeconds = 300.0
    """Longest life of a request, queueing included."""
    queue: Positive = 256
    """Requests that may wait for a place; one more is a 429."""
    allow_placement_override: bool = False
    """Whether a request may say {"pdmesh": {"split": N}}."""
    heartbeat_s: PositiveSeconds = 0.5
    """How often instances report."""
    lease_s: PositiveSeconds = 3.0
    """An instance that is silent for so long is lost."""
    prefill_slots: Positive = 2
    """Requests in one prefill instance at a time (the Cronus paper's cap of two)."""
    traces: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1000
    """Requests whose traces are kept, the last ones, for `pdmesh trace`; 0: none."""
    max_body: Annotated[int, msgspec.Meta(ge=1024)] = 8 << 20
    """Largest HTTP body in bytes; a larger one is a 413."""
    max_header: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)] = 16 << 10
    """Largest head of a request in bytes, its first line and its headers; a larger one is a 431."""
    max_prompt: Positive | None = None
    """Most tokens of a prompt; null: as many as the context holds. A longer one is a 400."""
    max_streams: Positive = 4096
    """Answers that are streamed at a time; one more is a 429."""
    max_connections: Positive = 8192
    """Connections of clients at a time; one more is told 503 and closed. Fewer where the system allows fewer files."""
    slow_client_s: PositiveSeconds = 60.0
    """How long a client may take to send its body (then 408), and how long it may leave its answer unread before it is
    cut off and its request cancelled."""
    api_keys: str | None = None
    """File of API keys, made by `pdmesh keys api`; null: everybody may ask."""
    silence_s: PositiveSeconds | None = 30.0
    """A pair of instances whose requests show no sign for so long is asked for a token, as every new pair is; one that
    does not answer within as long again is not counted by /ready. null: members count as they are."""


class TracingConfig(_Section, frozen=True):
    """Requests as OpenTelemetry traces; needs the package extra `tracing`. docs/tracing.md."""

    otlp: str | None = None
    """Where the gateway sends them: the address of a collector that takes OTLP over HTTP, such as
    http://127.0.0.1:4318; null: nowhere."""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Share of the requests that is sent. A client that sends a traceparent decides itself."""


class TlsConfig(_Section, frozen=True):
    """Mutual TLS: both ends show a certificate of the same authority. PEM files."""

    certificate: str
    """A PEM file, as the other two."""
    key: str
    """Of the certificate."""
    authority: str
    """Which the other end's certificate must be of."""


class TransferConfig(_Section, frozen=True):
    """How KV moves between instances."""

    backends: tuple[str, ...] = ("shm", "tcp")
    """What KV may travel by. Each pair of instances measures all that both have when it first meets, and takes the
    fastest."""
    host: str = "127.0.0.1"
    """Address on which prefill instances serve KV."""
    trusted_network: bool = False
    """Whether everybody who can reach `host` may be trusted. Needed for a host other than this machine's loopback,
    where a backend does not authenticate its peers."""
    tls: TlsConfig | None = None
    """Certificates with which the tcp backend proves who it is; it then authenticates its peers."""
    shm_folder: str | None = None
    """A folder that all instances of one host mount, for the sockets of the shm backend; null: instances in one network
    namespace find each other without."""
    segment_bytes: Positive = 8 << 20
    """Largest piece on the wire, and the size of one landing zone."""
    landing_zones: Annotated[int, msgspec.Meta(ge=1, le=128)] = 4
    """Most pieces in flight per hand-off (the credit); a small hand-off has fewer."""
    max_parked: Positive = 64
    """Takers that may wait at P for a job not yet heard of."""
    progress_timeout_s: PositiveSeconds = 5.0
    """A peer that shows no sign of life for so long ends the hand-off."""
    checksum: bool = True
    """Whether every segment is proved by an xxh3 hash."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Threads with which a CPU instance packs or unpacks one piece."""


class EmulateConfig(_Section, frozen=True):
    """Make this machine look like another; every figure made with it is labelled emulated."""

    slowdown: Annotated[float, msgspec.Meta(ge=1, le=1_000_000)] = 1.0
    """Each step is stretched to slowdown × its measured time."""
    fault_file: str | None = None
    """For tests: a file that orders this process to die at a named point (common.faults)."""


class InstanceConfig(_Section, frozen=True):
    """One instance: a role on a device."""

    id: InstanceId
    """Its name, in the mesh and in every message about it."""
    role: Role
    """A prefill instance computes prompts for others; a decode instance serves requests, whole or from a split on."""
    host: str | None = None
    """The machine that it runs on, for `pdmesh compose`; null: the gateway's."""
    device: str = "cpu"
    """cpu, cuda[:N] or rocm[:N]."""
    tp: Positive = 1
    """Devices that share each layer. Plans may have more than one; they cannot be run yet."""
    pp: Positive = 1
    """Groups of devices that have a part of the layers each. Plans may have more than one; they cannot be run yet."""
    dtype: DType | None = None
    """None: the mesh's dtype."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    """Threads that it computes with; null: one for each core of `cpu_affinity`, else the machine's cores shared evenly
    among all `instances`, those of other machines too."""
    cpu_affinity: tuple[int, ...] | None = None
    """The cores that it may run on; null: all."""
    block_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    """Tokens of a KV block."""
    order: KVOrder = KVOrder.NHD
    """Of a block's dimensions: tokens before heads (NHD) or heads before tokens (HND)."""
    kv_memory: str | Positive = "1GiB"
    """Memory for KV blocks: a number of bytes with an optional unit."""
    prefill_chunk: Positive | None = None
    """Prefill role: tokens per step; null computes the whole prompt in one step."""
    max_batch: Positive = 16
    """Decode role: sequences decoded at once."""
    budget: Positive = 256
    """Decode role: tokens per step, decodes first."""
    prefix_cache: bool = True
    """Whether KV of requests that have ended is kept, while its room is not needed, for those that begin alike."""
    profile: str | None = None
    """File that `pdmesh profile` wrote for this model, dtype and device: what steps cost, for policies that predict."""
    self_profile: bool = False
    """Without a profile: measure a few steps at each start, which takes seconds; best while nothing else runs there."""
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    """Policy dp: its share of the requests, relative to the others'; null: by what its steps cost."""
    emulate: EmulateConfig = EmulateConfig()


def _default_instances() -> tuple[InstanceConfig, ...]:
    return (
        InstanceConfig(id=InstanceId("p0"), role=Role.PREFILL),
        InstanceConfig(id=InstanceId("d0"), role=Role.DECODE),
    )


class MeshConfig(_Section, frozen=True):
    """One mesh.yaml."""

    model: str = "smollm2"
    """A built-in name, a folder, a .gguf file, or a hub id."""
    dtype: DType = "float32"
    """Of weights, computation and KV, where an instance does not say its own."""
    policy: Literal[
        "fixed",
        "disagg",
        "dp",
        "cronus",
        "capacity",
        "round_robin",
        "random",
        "jsq",
        "power_of_two",
        "least_kv",
    ] = "fixed"
    """fixed: `split` says how much of a prompt is computed by a prefill instance. disagg: all of it. dp: nothing.
    cronus: as much as keeps both busy, by what their steps cost. capacity: where the work ends soonest, by what each
    instance can do, with and without a prefill instance. The others ignore what instances can do: rivals to measure
    against."""
    output_lengths: Literal["quantile", "mean", "class", "max_tokens"] = "class"
    """Policies that predict: how long an answer is expected to be. quantile: the 0.6 quantile of the last answers.
    mean: their mean. class: the quantile of those to the same `user`. max_tokens: as long as the request allows."""
    split: Split = "full"
    """Policy fixed: tokens of each prompt that a prefill instance computes. full: all but the last. An integer: so
    many. A number from 0.0 to 1.0: this share of them."""
    gateway: GatewayConfig = GatewayConfig()
    transfer: TransferConfig = TransferConfig()
    tracing: TracingConfig = TracingConfig()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    instances: tuple[InstanceConfig, ...] = msgspec.field(default_factory=_default_instances)
