"""A member that joins late, or again, under policies that deal by counts; and a line that moves when a P drains."""

from common.ids import RequestId
from common.messages.control import Load
from services.scheduling.ledgers.fleet import Fleet
from services.scheduling.ledgers.work_ledger import Share
from services.scheduling.lifecycle.events import Place
from services.scheduling.lifecycle.lifecycle import Lifecycle, Limits
from services.scheduling.membership.members import LoadReported, MemberJoined
from services.scheduling.policies.fixed import FixedPolicy
from tests.unit.scheduling.lifecycle_case import D0, D1, GENERATION, P0, a_member, a_spec, arrive, places


def test_a_new_member_is_not_dealt_what_the_others_were_dealt_before() -> None:
    fleet = Fleet(prefill_slots=2, decode_batches=1000)
    fleet.join(a_member(D0))
    for number in range(50):
        fleet.give(D0, RequestId(str(number)), Share(5, 5, 4, 4))
    assert [view.placed for view in fleet.view().decodes] == [50]
    fleet.join(a_member(P0))
    assert [view.placed for view in fleet.view().decodes] == [50], "of another role"
    fleet.join(a_member(D1))
    assert [view.placed for view in fleet.view().decodes] == [0, 0]
    assert fleet.view().decodes[0].outstanding_requests == 50


def test_a_line_moves_at_once_when_draining_changes_what_is_possible() -> None:
    class Whole(FixedPolicy):
        """Without a P whose door is open, D alone serves."""

        def place(self, request, mesh):  # type: ignore[no-untyped-def]
            return FixedPolicy(0).place(request, mesh) if not mesh.prefills else super().place(request, mesh)

        def refusal(self, request, mesh):  # type: ignore[no-untyped-def]
            return None

    lifecycle = Lifecycle(Limits(prefill_slots=1), Whole("full"))
    for instance in (P0, D0):
        lifecycle.handle(MemberJoined(a_member(instance)))
    arrive(lifecycle, a_spec("a"))
    assert places(arrive(lifecycle, a_spec("b"))) == []
    effects = lifecycle.handle(LoadReported(P0, GENERATION[P0], Load(draining=True)))
    assert [effect.placement.prefill for effect in effects if isinstance(effect, Place)] == [None]
