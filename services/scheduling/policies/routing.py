"""What a placement policy is asked and what it may answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

import msgspec

from common.errors import Failure
from common.ids import InstanceId
from common.messages.control import LinkFigures, Load
from services.scheduling.ledgers.work_ledger import Work
from services.scheduling.membership.members import Member
from services.scheduling.placement import Placement
from services.scheduling.profiles.stage_times import DecodeLoad
from services.scheduling.request import RequestSpec


class InstanceView(msgspec.Struct, frozen=True):
    """One member and what the gateway has given it to do."""

    member: Member
    outstanding_requests: int
    outstanding_tokens: int
    """Most tokens that these requests can come to: of the prompt at P; of prompt and output at D."""
    has_room: bool
    """Whether one more request may be sent there; a policy never places a request where this is False."""
    load: Load | None
    """What the member said of itself last; None before its first heartbeat."""
    placed: int = 0
    """Requests given to it since a member of its role joined last, ended ones included."""
    pending_prompts: tuple[int, ...] = ()
    """Prompt tokens to compute of each request whose part here is not known to be computed; where there are many, one
    sum."""
    decode_load: DecodeLoad = DecodeLoad()
    """At D: what delays something new."""
    expected_tokens: int = 0
    """Tokens that its requests are expected to come to, as predicted when each was placed."""
    work: Work = Work()
    """What is left to do of them, and the KV that they hold."""


class MeshView(msgspec.Struct, frozen=True):
    """The members that take requests, by role."""

    prefills: tuple[InstanceView, ...] = ()
    decodes: tuple[InstanceView, ...] = ()
    links: Mapping[tuple[InstanceId, InstanceId], LinkFigures] = MappingProxyType({})
    """The link in use from a P to a D, where it has been measured."""
    expected_output: float | None = None
    """Tokens that one choice of the request to place is expected to have; None: nothing is known yet."""
    waiting: int = 0
    """Requests that wait for a place, the one to place among them."""
    held: Mapping[InstanceId, int] = MappingProxyType({})
    """Leading tokens of the prompt of the request to place whose KV an instance has; 0 for those not named."""

    def held_by(self, view: InstanceView) -> int:
        """Leading tokens whose KV it has."""
        return self.held.get(view.member.instance, 0)


class Wait(msgspec.Struct, frozen=True):
    """No place now, but there will be one. `reason` says what is waited for, as in "waiting for {reason}"."""

    reason: str


class PlacementPolicy(ABC):
    """Chooses (P, D, s) for a request. Pure: the same request and mesh give the same answer.

    Requests that need a prefill instance and requests that need none wait in two lines, each first in, first out:
    the life cycle calls `place` for the head of a line, and neither line holds up the other.
    A new policy is a subclass and a line in `policies`.
    """

    counts_tokens: ClassVar[bool] = False
    """Whether it looks at `InstanceView.work`, which is right only while the tokens of running answers are heard of.
    A live mesh tells every token; a simulation tells them now and then, and only to such a policy."""

    @classmethod
    def configured(cls, split: str | int | float) -> Self:  # noqa: ARG003 - for those policies that have one
        """The policy of a mesh whose configuration says `split`."""
        return cls()

    @abstractmethod
    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """Why this mesh cannot serve the request however long it waits; None: it can.

        Asked at arrival, and again for every waiting request when a member is lost or drains.
        """

    @abstractmethod
    def needs_prefill(self, request: RequestSpec) -> bool:
        """The line in which a request waits that is not refused. Never changes for one request."""

    @abstractmethod
    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """A place for a request that is not refused."""

    @abstractmethod
    def not_ready(self, mesh: MeshView) -> str | None:
        """What is missing before an ordinary request can be served, in words for an operator; None: nothing."""


def token_limit(member: Member) -> int:
    """Most tokens of one request that a member holds."""
    return min(member.context_length, member.kv_capacity_tokens)


def least_loaded(instances: list[InstanceView], mesh: MeshView) -> InstanceView:
    """The one with the fewest outstanding tokens, those counted off whose KV it has of the request to place; then
    requests, then the first by id. `instances` is not empty.
    """
    return min(
        instances,
        key=lambda view: (
            view.outstanding_tokens - mesh.held_by(view),
            view.outstanding_requests,
            view.member.instance,
        ),
    )
