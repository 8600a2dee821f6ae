"""What `pdmesh status --watch` makes of two looks."""

import io

from rich.console import Console

from common.ids import Generation, InstanceId
from common.kv.intervals import Interval
from common.kv.layout import KVDType, KVLayout, KVOrder
from common.messages.control import Load, Register, Role
from common.messages.operator import InstanceInfo
from services.cli.status import Rate, Rates, status_table

LAYOUT = KVLayout("tiny", KVDType.FLOAT32, 16, KVOrder.NHD, Interval(0, 2), Interval(0, 3), 8)


def info(steps: int, tokens: int, life: int = 0xABCDEF123456, *, used: int = 0) -> InstanceInfo:
    member = Register(InstanceId("d0"), Role.DECODE, Generation(life), (), LAYOUT, 100, 100, 4)
    return InstanceInfo(member, Load(steps=steps, tokens=tokens, blocks_used=used, blocks_total=4))


def test_rates_are_of_the_time_between_two_looks() -> None:
    now = iter((10.0, 12.0, 13.0))
    rates = Rates(lambda: next(now))
    assert rates.look([info(5, 100)]) == {}
    assert rates.look([info(9, 400)]) == {"d0": Rate(steps=2.0, tokens=150.0)}
    assert rates.look([info(1, 3, life=7)]) == {}, "another life counts from zero"


def test_a_line_tells_life_room_and_rates() -> None:
    console = Console(file=io.StringIO(), width=240)
    console.print(status_table([info(9, 400, used=1)], {"d0": Rate(2.0, 150.0)}))
    assert isinstance(console.file, io.StringIO)
    (line,) = [line for line in console.file.getvalue().splitlines() if " d0 " in line]
    cells = [cell.strip() for cell in line.split("│")]
    assert {"d0", "decode", "…123456", "serving", "25%", "2.0", "150"} <= set(cells)
