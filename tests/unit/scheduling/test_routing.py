"""Where the policy `fixed` places requests, and what it refuses."""

import pytest

from common.errors import ConfigError, Failure, FailureKind
from common.ids import Generation, InstanceId, RequestId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import Register, Role
from common.messages.sampling import SamplingParams
from services.scheduling.placement import Placement
from services.scheduling.policies.fixed import FixedPolicy
from services.scheduling.policies.registry import load_policy
from services.scheduling.policies.routing import InstanceView, MeshView, Wait
from services.scheduling.request import RequestSpec

LAYOUT = KVLayout(
    model="tiny",
    dtype=KVDType.FLOAT32,
    block_size=16,
    order=KVOrder.NHD,
    layers=Interval(0, 2),
    heads=Interval(0, 3),
    head_dim=8,
)
TOKEN_BYTES = 2 * 2 * 3 * 8 * 4  # K and V, layers, heads, head_dim, float32


def an_instance(
    name: str,
    *,
    tokens: int = 0,
    requests: int = 0,
    has_room: bool = True,
    context_length: int = 1000,
    kv_capacity_tokens: int = 1000,
) -> InstanceView:
    member = Register(
        instance=InstanceId(name),
        role=Role.PREFILL if name.startswith("p") else Role.DECODE,
        generation=Generation(1),
        endpoints=(),
        layout=LAYOUT,
        context_length=context_length,
        kv_capacity_tokens=kv_capacity_tokens,
        max_batch=4,
    )
    return InstanceView(member, requests, tokens, has_room, None)


def a_mesh(*instances: InstanceView) -> MeshView:
    return MeshView(
        prefills=tuple(view for view in instances if view.member.role is Role.PREFILL),
        decodes=tuple(view for view in instances if view.member.role is Role.DECODE),
    )


def a_request(
    prompt: int = 10, max_tokens: int = 5, split: str | int | float | None = None, choices: int = 1
) -> RequestSpec:
    return RequestSpec(
        request=RequestId("r"),
        prompt=tuple(range(prompt)),
        sampling=SamplingParams(),
        max_tokens=max_tokens,
        deadline_at=10.0,
        choices=choices,
        split=split,
    )


def placed(prefill: str | None, decode: str, split: int) -> Placement:
    instance = None if prefill is None else InstanceId(prefill)
    return Placement(instance, InstanceId(decode), split, split * TOKEN_BYTES)


@pytest.mark.parametrize(
    ("mesh_split", "override", "expected"),
    [
        ("full", None, placed("p0", "d0", 9)),
        ("full", 0, placed(None, "d0", 0)),
        ("full", 4, placed("p0", "d0", 4)),
        (0, None, placed(None, "d0", 0)),
        (0, "full", placed("p0", "d0", 9)),
        (1, None, placed("p0", "d0", 1)),
        (0.5, None, placed("p0", "d0", 4)),
    ],
)
def test_the_request_overrides_the_split_of_the_mesh(
    mesh_split: str | int | float, override: str | int | float | None, expected: Placement
) -> None:
    policy = FixedPolicy(mesh_split)
    request = a_request(split=override)
    assert policy.place(request, a_mesh(an_instance("p0"), an_instance("d0"))) == expected
    assert policy.needs_prefill(request) == (expected.prefill is not None)


def test_the_placement_header_names_both_sides_and_the_bytes() -> None:
    assert placed("p0", "d0", 2).header() == "prefill=p0; decode=d0; split=2; kv-bytes=768"
    assert placed(None, "d0", 0).header() == "prefill=-; decode=d0; split=0; kv-bytes=0"


@pytest.mark.parametrize(
    ("instances", "expected"),
    [
        ([an_instance("d1", tokens=5), an_instance("d0", tokens=6)], "d1"),
        ([an_instance("d0", tokens=5, requests=2), an_instance("d1", tokens=5, requests=1)], "d1"),
        ([an_instance("d1"), an_instance("d0")], "d0"),
        ([an_instance("d0", has_room=False), an_instance("d1", tokens=999)], "d1"),
        ([an_instance("d0", context_length=14), an_instance("d1", tokens=999)], "d1"),
        ([an_instance("d0", kv_capacity_tokens=14), an_instance("d1", tokens=999)], "d1"),
    ],
)
def test_takes_the_least_loaded_decode_instance_that_fits(instances: list[InstanceView], expected: str) -> None:
    assert FixedPolicy(0).place(a_request(), a_mesh(*instances)) == placed(None, expected, 0)


def test_takes_the_least_loaded_prefill_instance_with_a_slot_that_fits() -> None:
    mesh = a_mesh(
        an_instance("p0", has_room=False),
        an_instance("p1", kv_capacity_tokens=8),
        an_instance("p2", tokens=7, requests=1),
        an_instance("p3", tokens=6, requests=1),
        an_instance("d0"),
    )
    assert FixedPolicy("full").place(a_request(), mesh) == placed("p3", "d0", 9)


def test_waits_for_what_is_full() -> None:
    policy = FixedPolicy("full")
    full_p = a_mesh(an_instance("p0", has_room=False), an_instance("d0"))
    full_d = a_mesh(an_instance("p0"), an_instance("d0", has_room=False))
    assert policy.place(a_request(), full_p) == Wait("a free slot at a prefill instance")
    assert policy.place(a_request(), full_d) == Wait("room at a decode instance")
    assert policy.place(a_request(split=0), full_p) == placed(None, "d0", 0)


def refused(policy: FixedPolicy, request: RequestSpec, mesh: MeshView) -> Failure:
    failure = policy.refusal(request, mesh)
    assert failure is not None
    return failure


def test_refuses_while_a_role_is_missing() -> None:
    policy = FixedPolicy("full")
    only_p, only_d = a_mesh(an_instance("p0")), a_mesh(an_instance("d0"))
    assert refused(policy, a_request(), only_p).kind is FailureKind.NO_INSTANCE
    assert "decode instance" in refused(policy, a_request(), only_p).message
    assert refused(policy, a_request(), only_d).kind is FailureKind.NO_INSTANCE
    assert "prefill instance" in refused(policy, a_request(), only_d).message
    assert policy.refusal(a_request(split=0), only_d) is None
    assert policy.refusal(a_request(prompt=1), only_d) is None, "one token leaves nothing to prefill"


def test_refuses_what_no_instance_can_hold_with_both_numbers() -> None:
    mesh = a_mesh(
        an_instance("p0", context_length=8),
        an_instance("d0", context_length=14),
        an_instance("d1", kv_capacity_tokens=15),
    )
    policy = FixedPolicy(8)
    assert policy.refusal(a_request(10, 5), mesh) is None
    too_long = refused(policy, a_request(10, 6), mesh)
    assert too_long.kind is FailureKind.INVALID_REQUEST
    assert "needs 16 tokens (prompt 10 + max_tokens 6)" in too_long.message
    assert "holds 15" in too_long.message
    too_much_prefill = refused(policy, a_request(10, 5, split=9), mesh)
    assert too_much_prefill.kind is FailureKind.INVALID_REQUEST
    assert "9 tokens, and the largest holds 8" in too_much_prefill.message


def test_a_full_mesh_is_no_refusal() -> None:
    mesh = a_mesh(an_instance("p0", has_room=False), an_instance("d0", has_room=False))
    assert FixedPolicy("full").refusal(a_request(), mesh) is None


def test_refuses_a_split_that_is_none() -> None:
    failure = refused(FixedPolicy(0), a_request(split=-3), a_mesh(an_instance("d0")))
    assert failure.kind is FailureKind.INVALID_REQUEST
    assert "split -3" in failure.message


@pytest.mark.parametrize(
    ("split", "names", "missing"),
    [
        ("full", ["p0", "d0"], None),
        ("full", ["d0"], "prefill"),
        ("full", ["p0"], "decode"),
        (0, ["d0"], None),
        (0.0, ["d0"], None),
        (0, [], "decode"),
    ],
)
def test_says_what_is_missing_before_it_is_ready(
    split: str | int | float, names: list[str], missing: str | None
) -> None:
    reason = FixedPolicy(split).not_ready(a_mesh(*map(an_instance, names)))
    assert reason is None if missing is None else f"{missing} instance" in str(reason)


def test_policies_are_found_by_name() -> None:
    policy = load_policy("fixed", 3)
    assert isinstance(policy, FixedPolicy)
    assert policy.place(a_request(), a_mesh(an_instance("p0"), an_instance("d0"))) == placed("p0", "d0", 3)
    with pytest.raises(ConfigError, match="'fastest' is not known; choose one of capacity, cronus, disagg, dp, fixed"):
        load_policy("fastest", 3)
    with pytest.raises(ConfigError, match="not a PlacementPolicy"):
        load_policy("odd", 3, policies={"odd": "fractions:Fraction"})
