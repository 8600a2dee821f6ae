"""The policy `fixed`: one split for all requests, the least loaded instances."""

from common.errors import Failure, FailureKind
from common.kv.wire import wire_token_bytes
from services.scheduling.placement import Placement
from services.scheduling.request import RequestSpec
from services.scheduling.routing import (
    InstanceView,
    MeshView,
    PlacementPolicy,
    Wait,
    least_loaded,
    token_limit,
)
from services.scheduling.split import SplitError, resolve_split


class FixedPolicy(PlacementPolicy):
    """Splits every prompt at `split` (the words of `resolve_split`) unless the request says otherwise.

    Raises SplitError where `split` is not one of those words.
    """

    def __init__(self, split: str | int | float) -> None:
        self._split = split
        # A share of however long a prompt: what an ordinary request needs, whatever its length.
        self._splits_prompts = resolve_split(split, prompt_tokens=1 << 30) > 0

    def refusal(self, request: RequestSpec, mesh: MeshView) -> Failure | None:
        """A split or a size that no member can serve is the client's fault; a role without members is not."""
        try:
            split = self._split_of(request)
        except SplitError as error:
            return Failure(FailureKind.INVALID_REQUEST, str(error))
        if (missing := _missing_role(split > 0, mesh)) is not None:
            return Failure(FailureKind.NO_INSTANCE, missing)
        return _too_long(request, split, mesh)

    def needs_prefill(self, request: RequestSpec) -> bool:
        """Whether the split is above 0."""
        return self._split_of(request) > 0

    def place(self, request: RequestSpec, mesh: MeshView) -> Placement | Wait:
        """The least loaded D and, for a split above 0, the least loaded P, of those with room for the request."""
        split = self._split_of(request)
        decodes = _with_room(mesh.decodes, _total_tokens(request))
        if not decodes:
            return Wait("room at a decode instance")
        decode = least_loaded(decodes).member
        if split == 0:
            return Placement(prefill=None, decode=decode.instance, split=0, kv_bytes=0)
        prefills = _with_room(mesh.prefills, split)
        if not prefills:
            return Wait("a free slot at a prefill instance")
        prefill = least_loaded(prefills).member
        kv_bytes = split * wire_token_bytes(prefill.layout, decode.layout)
        return Placement(prefill=prefill.instance, decode=decode.instance, split=split, kv_bytes=kv_bytes)

    def not_ready(self, mesh: MeshView) -> str | None:
        """A decode instance must have joined and, unless the mesh's split is 0, a prefill instance."""
        return _missing_role(self._splits_prompts, mesh)

    def _split_of(self, request: RequestSpec) -> int:
        split = self._split if request.split is None else request.split
        return resolve_split(split, len(request.prompt))


def _missing_role(needs_prefill: bool, mesh: MeshView) -> str | None:
    if not mesh.decodes:
        return "no decode instance is in the mesh; start one, or look in its log why it does not join"
    if needs_prefill and not mesh.prefills:
        return "a split above 0 needs a prefill instance, and none is in the mesh; start one, or serve with split 0"
    return None


def _total_tokens(request: RequestSpec) -> int:
    return len(request.prompt) + request.max_tokens


def _with_room(instances: tuple[InstanceView, ...], tokens: int) -> list[InstanceView]:
    return [view for view in instances if view.has_room and tokens <= token_limit(view.member)]


def _too_long(request: RequestSpec, split: int, mesh: MeshView) -> Failure | None:
    most = max(token_limit(view.member) for view in mesh.decodes)
    if (total := _total_tokens(request)) > most:
        return Failure(
            FailureKind.INVALID_REQUEST,
            f"the request needs {total} tokens (prompt {len(request.prompt)} + max_tokens {request.max_tokens}), "
            f"and the largest decode instance holds {most}; shorten the prompt or lower max_tokens",
        )
    most = max((token_limit(view.member) for view in mesh.prefills), default=0)
    if split > most:
        return Failure(
            FailureKind.INVALID_REQUEST,
            f"split {split} asks a prefill instance for {split} tokens, and the largest holds {most}; "
            "lower the split or shorten the prompt",
        )
    return None
