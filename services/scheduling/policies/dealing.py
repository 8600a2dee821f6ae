"""Policies that do not ask what an instance can do: rivals to measure the others against.

The blind ones (`round_robin`, `random`, and `dp` in `weighted`) settle who serves a request whatever anybody is doing,
and the request waits for that one; the others choose among those with room.  All answer the same question in the same
way: what is drawn by lot is drawn from the request's id.
"""

from abc import abstractmethod
from typing import ClassVar

import xxhash

from services.scheduling.policies.eligibility import total_tokens, with_room
from services.scheduling.policies.routing import InstanceView, MeshView, Wait
from services.scheduling.policies.weighted import next_by_weight
from services.scheduling.policies.whole import BlindPolicy, WholePolicy
from services.scheduling.request import RequestSpec


class RoundRobinPolicy(BlindPolicy):
    """`round_robin`: in turn."""

    def pick(self, request: RequestSpec, able: list[InstanceView], mesh: MeshView) -> InstanceView:  # noqa: ARG002
        """As `dp` with equal weights."""
        return next_by_weight(able, {view.member.instance: 1.0 for view in able})


class RandomPolicy(BlindPolicy):
    """`random`: each with the same chance."""

    def pick(self, request: RequestSpec, able: list[InstanceView], mesh: MeshView) -> InstanceView:  # noqa: ARG002
        """By a hash of the request's id."""
        return able[_lot(request) % len(able)]


class SightedPolicy(WholePolicy):
    """Compares those that have room."""

    def choose(self, request: RequestSpec, mesh: MeshView) -> InstanceView | Wait:
        """The best of those."""
        views = with_room(mesh.decodes, total_tokens(request))
        return self.best(request, views) if views else Wait("room at a decode instance")

    @abstractmethod
    def best(self, request: RequestSpec, views: list[InstanceView]) -> InstanceView:
        """One of `views`, which are not empty."""


class ShortestQueuePolicy(SightedPolicy):
    """`jsq`: who has the fewest requests."""

    def best(self, request: RequestSpec, views: list[InstanceView]) -> InstanceView:  # noqa: ARG002 - any request
        """By outstanding requests, then by id."""
        return min(views, key=lambda view: (view.outstanding_requests, view.member.instance))


class PowerOfTwoPolicy(SightedPolicy):
    """`power_of_two`: of two drawn by lot the one with fewer requests (Mitzenmacher, 2001)."""

    def best(self, request: RequestSpec, views: list[InstanceView]) -> InstanceView:
        """By outstanding requests; the first drawn where both have as many."""
        if len(views) == 1:
            return views[0]
        rest, first = divmod(_lot(request), len(views))
        second = (first + 1 + rest % (len(views) - 1)) % len(views)
        return min(views[first], views[second], key=lambda view: view.outstanding_requests)


class LeastKVPolicy(SightedPolicy):
    """`least_kv`: whose KV memory is used least, as a share of it."""

    counts_tokens: ClassVar[bool] = True

    def best(self, request: RequestSpec, views: list[InstanceView]) -> InstanceView:  # noqa: ARG002 - any request
        """By the tokens that it holds now, then by id."""
        return min(views, key=lambda view: (view.work.kv_tokens / view.member.kv_capacity_tokens, view.member.instance))


def _lot(request: RequestSpec) -> int:
    return xxhash.xxh3_64_intdigest(request.request.encode())
