import msgspec

from common.ids import Generation, InstanceId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import LinkFigures, LinkMeasured, MeetPrefill, Register, Role
from services.scheduling.membership.links import Links, Meet
from services.scheduling.membership.members import LossReason, MemberJoined, MemberLost

LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 2), Interval(0, 3), 8)


def member(name: str, generation: int = 1) -> Register:
    role = Role.PREFILL if name.startswith("p") else Role.DECODE
    endpoints = (f"tcp://{name}:1",) if role is Role.PREFILL else ()
    return Register(InstanceId(name), role, Generation(generation), endpoints, LAYOUT, 100, 100, 4)


def join(links: Links, name: str, generation: int = 1) -> list[tuple[str, str]]:
    """Who is told to meet whom, and that the message says so."""
    effects = links.joined(MemberJoined(member(name, generation)))
    for effect in effects:
        assert isinstance(effect, Meet)
        message = effect.message
        assert message == MeetPrefill(message.peer, message.peer_generation, (f"tcp://{message.peer}:1",))
    return [(effect.instance, effect.message.peer) for effect in effects]


def measured(decode: str = "d0", prefill: str = "p0", **changes: object) -> LinkMeasured:
    figures = (LinkFigures("shm", 9e9, 1e-4), LinkFigures("tcp", 4e9, 2e-4))
    one = Generation(1)
    right = LinkMeasured(InstanceId(decode), one, InstanceId(prefill), one, figures)
    return msgspec.structs.replace(right, **changes)


def test_every_decode_instance_meets_every_prefill_instance_once() -> None:
    links = Links()
    assert join(links, "d0") == []
    assert join(links, "p0") == [("d0", "p0")]
    assert join(links, "p1") == [("d0", "p1")]
    assert join(links, "d1") == [("d1", "p0"), ("d1", "p1")]
    assert join(links, "p0", 2) == [("d0", "p0"), ("d1", "p0")]


def test_what_was_measured_is_kept_while_both_live() -> None:
    links = Links()
    for name in ("d0", "p0", "p1"):
        join(links, name)
    assert links.measured(measured(prefill="p1"))
    assert links.measured(measured())
    assert links.table() == (measured(), measured(prefill="p1"))
    links.lost(MemberLost(InstanceId("p0"), Generation(1), LossReason.LEFT))
    assert links.table() == (measured(prefill="p1"),)
    links.lost(MemberLost(InstanceId("d0"), Generation(1), LossReason.SILENT))
    assert links.table() == ()


def test_a_figure_of_another_life_does_not_count() -> None:
    links = Links()
    join(links, "d0")
    join(links, "p0", 2)
    for late in (measured(), measured(peer_generation=Generation(2), generation=Generation(0)), measured("d9")):
        assert not links.measured(late)
    assert links.measured(measured(peer_generation=Generation(2)))
    assert len(links.table()) == 1
