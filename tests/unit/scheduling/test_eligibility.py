"""Who can serve a request at all."""

import pytest

from common.errors import FailureKind
from services.scheduling.policies.eligibility import missing_role, too_long, total_tokens, with_room
from tests.unit.scheduling.costs_case import a_decode, a_member, a_mesh, a_prefill, a_request


def test_a_mesh_without_d_serves_nothing() -> None:
    for needs_prefill in (False, True):
        assert "no decode instance" in str(missing_role(needs_prefill, a_mesh(a_prefill())))


def test_only_a_split_needs_a_p() -> None:
    mesh = a_mesh(a_decode())
    assert missing_role(False, mesh) is None
    assert "needs a prefill instance" in str(missing_role(True, mesh))
    assert missing_role(True, a_mesh(a_prefill(), a_decode())) is None


def test_members_that_are_full_are_not_missing() -> None:
    assert missing_role(True, a_mesh(a_prefill(has_room=False), a_decode(has_room=False))) is None


def test_a_request_is_its_prompt_and_its_longest_choice() -> None:
    assert total_tokens(a_request(100, 20, choices=3)) == 120


def test_room_is_for_one_more_request_of_that_size() -> None:
    full = a_decode("d0", has_room=False)
    small = a_decode("d1", member=a_member("d1", tokens=119))
    fits = a_decode("d2", member=a_member("d2", tokens=120))
    assert with_room((full, small, fits), 120) == [fits]
    assert with_room((), 120) == []


def test_what_some_d_holds_is_not_too_long() -> None:
    small, large = (a_decode(name, member=a_member(name, tokens=size)) for name, size in (("d0", 100), ("d1", 120)))
    assert too_long(a_request(100, 20), 0, a_mesh(small, large)) is None


def test_what_no_d_holds_is_refused_with_the_numbers() -> None:
    failure = too_long(a_request(100, 21), 0, a_mesh(a_decode(member=a_member("d0", tokens=120))))
    assert failure is not None
    assert failure.kind is FailureKind.INVALID_REQUEST
    assert "121 tokens (prompt 100 + max_tokens 21)" in failure.message
    assert "holds 120" in failure.message


@pytest.mark.parametrize(("split", "refused"), [(0, False), (50, False), (51, True)])
def test_what_no_p_holds_is_refused(split: int, refused: bool) -> None:
    mesh = a_mesh(a_prefill(member=a_member("p0", tokens=50)), a_decode())
    failure = too_long(a_request(100), split, mesh)
    assert (failure is not None) is refused
    if failure is not None:
        assert f"split {split}" in failure.message
        assert "holds 50" in failure.message


def test_without_p_only_split_0_is_not_refused() -> None:
    assert too_long(a_request(100), 0, a_mesh(a_decode())) is None
    assert too_long(a_request(100), 1, a_mesh(a_decode())) is not None
