"""What the page at /dashboard is told, as JSON. Seconds are the gateway's, from its start where they are moments."""

import msgspec

from common.ids import InstanceId
from common.messages.control import Role
from common.messages.operator import InstanceInfo


class Sample(msgspec.Struct, frozen=True):
    """Counters at one moment: what happened between two samples is their difference."""

    number: int
    """From 0, one more each."""
    at_s: float
    queued: int
    running: int
    finished: int
    failed: int
    """Cancelled ones and refused ones too."""
    output_tokens: int
    prompt_tokens: int
    ttft: tuple[int, ...]
    """Requests with a first token within each of the bounds; the last one: within any time."""
    tbt: tuple[int, ...]
    """Gaps between tokens within each of their bounds."""


class ShownInstance(msgspec.Struct, frozen=True):
    """A member of the mesh."""

    id: InstanceId
    role: Role
    device: str
    generation: str
    """A number of 63 bits, as text: a browser's numbers have 53."""
    draining: bool
    running: int
    max_batch: int
    waiting: int
    queued_tokens: int
    context_tokens: int
    blocks_used: int
    blocks_total: int
    blocks_kept: int
    cost_factor: float | None
    """None: what its steps should cost is not known."""


class LostInstance(msgspec.Struct, frozen=True):
    """One that was a member and has not joined again."""

    id: InstanceId
    role: Role
    reason: str
    age_s: float


class ShownLink(msgspec.Struct, frozen=True):
    """What one backend between a pair reaches, and what it has moved."""

    prefill: InstanceId
    decode: InstanceId
    backend: str
    bytes_per_s: float
    round_trip_s: float
    handed_bytes: int
    failures: int
    """Of the pair, by any backend."""


class DashboardState(msgspec.Struct, frozen=True):
    """The answer of GET /dashboard/state."""

    life: str
    """Another one: the gateway has restarted, and its samples begin anew."""
    model: str
    policy: str
    not_ready: str | None
    uptime_s: float
    queued: int
    running: int
    finished: int
    failed: int
    instances: tuple[ShownInstance, ...]
    lost: tuple[LostInstance, ...]
    links: tuple[ShownLink, ...]
    """Of a pair the best first."""
    every_s: float
    """Between two samples."""
    ttft_bounds_s: tuple[float, ...]
    tbt_bounds_s: tuple[float, ...]
    samples: tuple[Sample, ...]
    """Those after the one that the page has; the oldest first."""


def shown(info: InstanceInfo) -> ShownInstance:
    """A member as the page shows it."""
    member, load = info.member, info.load
    return ShownInstance(
        id=member.instance,
        role=member.role,
        device=member.device.name or "device",
        generation=str(member.generation),
        draining=load.draining,
        running=load.running,
        max_batch=member.max_batch,
        waiting=load.waiting,
        queued_tokens=load.queued_tokens,
        context_tokens=load.context_tokens,
        blocks_used=load.blocks_used,
        blocks_total=load.blocks_total,
        blocks_kept=load.blocks_kept,
        cost_factor=load.cost_factor if member.costs is not None else None,
    )
