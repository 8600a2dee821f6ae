"""Which instances can serve a request at all, whatever the policy prefers."""

from common.errors import Failure, FailureKind
from services.scheduling.policies.routing import InstanceView, MeshView, token_limit
from services.scheduling.request import RequestSpec


def missing_role(needs_prefill: bool, mesh: MeshView) -> str | None:
    """The role that is needed and not in the mesh, in words for an operator; None: nothing is missing."""
    if not mesh.decodes:
        return "no decode instance is in the mesh; start one, or look in its log why it does not join"
    if needs_prefill and not mesh.prefills:
        return "a split above 0 needs a prefill instance, and none is in the mesh; start one, or serve with split 0"
    return None


def total_tokens(request: RequestSpec) -> int:
    """Most tokens that one choice of the request comes to."""
    return len(request.prompt) + request.max_tokens


def with_room(instances: tuple[InstanceView, ...], tokens: int) -> list[InstanceView]:
    """Those that take one more request and can hold one of so many tokens."""
    return [view for view in instances if view.has_room and tokens <= token_limit(view.member)]


def too_long(request: RequestSpec, split: int, mesh: MeshView) -> Failure | None:
    """Why no D holds the whole request, or no P its first `split` tokens; None: some do."""
    most = max(token_limit(view.member) for view in mesh.decodes)
    if (total := total_tokens(request)) > most:
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


def with_costs(views: tuple[InstanceView, ...]) -> list[InstanceView]:
    """Those whose steps have a known cost."""
    return [view for view in views if view.member.costs is not None]


def missing_costs(mesh: MeshView) -> str | None:
    """Why a policy that predicts cannot serve: it needs a decode instance whose steps have a known cost."""
    if (missing := missing_role(False, mesh)) is not None:
        return missing
    if not with_costs(mesh.decodes):
        return (
            "no decode instance knows what its steps cost, and the policy needs that; give instances[].profile "
            "a file of `pdmesh profile`, or set instances[].self_profile: true"
        )
    return None


def too_long_with_costs(request: RequestSpec, mesh: MeshView) -> Failure | None:
    """Why no such decode instance can ever serve the request; None: some can."""
    if (missing := missing_costs(mesh)) is not None:
        return Failure(FailureKind.NO_INSTANCE, missing)
    return too_long(request, 0, MeshView(decodes=tuple(with_costs(mesh.decodes))))
