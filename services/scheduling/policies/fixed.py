"""The policy `fixed`: one split for all requests, the least loaded instances."""

from typing import Self

from common.errors import Failure, FailureKind
from common.kv.wire import wire_token_bytes
from services.scheduling.placement import Placement
from services.scheduling.policies.eligibility import missing_role, too_long, total_tokens, with_room
from services.scheduling.policies.routing import InstanceView, MeshView, PlacementPolicy, Wait, least_loaded
from services.scheduling.request import RequestSpec
from services.scheduling.split import SplitError, resolve_split


class FixedPolicy(PlacementPolicy):
    """Splits every prompt at `split` (the words of `resolve_split`) unless the request says otherwise.

    Raises SplitError where `split` is not one of those words.
    """

    def __init__(self, split: str | int | float) -> None:
        self._split = split
        # A share of however long a prompt: what an ordinary request needs, whatever its length.
        self._splits_prompts = resolve_split(split, prompt_tokens=1 << 30) > 0

    @classmethod
    def configured(cls, split: str | int | float) -> Self:
        """See PlacementPolicy."""
        return cls(split)

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """A split or a size that no member can serve is the client's fault; a role without members is not."""
        try:
            split = self._split_of(request)
        except SplitError as error:
            return Failure(FailureKind.INVALID_REQUEST, str(error))
        if (missing := missing_role(split > 0, mesh)) is not None:
            return Failure(FailureKind.NO_INSTANCE, missing)
        return too_long(request, split, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """Whether the split is above 0."""
        return self._split_of(request) > 0

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The least loaded D and, for a split above 0, the least loaded P, of those with room for the request."""
        split = self._split_of(request)
        decodes = with_room(mesh.decodes, total_tokens(request))
        if not decodes:
            return Wait("room at a decode instance")
        chosen = self._decode(decodes, split, request, mesh)
        decode = chosen.member
        # Who says a split means it; else a D that has the KV of all that P was to compute needs none.
        if split == 0 or (request.split is None and mesh.held_by(chosen) >= split):
            return Placement(prefill=None, decode=decode.instance, split=0, kv_bytes=0)
        prefills = with_room(mesh.prefills, split)
        if not prefills:
            return Wait("a free slot at a prefill instance")
        prefill = self._prefill(prefills, split, mesh).member
        moved = max(0, split - mesh.held_by(chosen))
        kv_bytes = moved * wire_token_bytes(prefill.layout, decode.layout)
        return Placement(prefill=prefill.instance, decode=decode.instance, split=split, kv_bytes=kv_bytes)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance must have joined and, unless the mesh's split is 0, a prefill instance."""
        return missing_role(self._splits_prompts, mesh)

    def _decode(
        self,
        able: list[InstanceView],
        split: int,  # noqa: ARG002 - for those that weigh
        request: RequestSpec,  # noqa: ARG002
        mesh: MeshView,
    ) -> InstanceView:
        """One of those that have room; `able` is not empty."""
        return least_loaded(able, mesh)

    def _prefill(self, able: list[InstanceView], split: int, mesh: MeshView) -> InstanceView:  # noqa: ARG002
        """One of those that have a free slot; `able` is not empty."""
        return least_loaded(able, mesh)

    def _split_of(self, request: RequestSpec) -> int:
        split = self._split if request.split is None else request.split
        return resolve_split(split, len(request.prompt))
