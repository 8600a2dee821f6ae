"""Instances on machines: none across two, none on another's devices, as few machines as there can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_case import TP2, TP4, group, plan, pool

from common.messages.control import Role
from services.planner.errors import PlannerError
from services.planner.plan import Serving
from services.planner.trials.packing import packed, seats


@st.composite
def fitting(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """Machines, devices of each, and sizes in any order that some packing has room for."""
    machines, exponent = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    sizes: list[int] = []
    for _ in range(machines):
        left = 2**exponent
        while left and draw(st.integers(0, 5)):
            size = min(2 ** draw(st.integers(0, exponent)), 2 ** (left.bit_length() - 1))
            sizes.append(size)
            left -= size
    return machines, 2**exponent, draw(st.permutations(sizes))


@given(fitting())
def test_whatever_fits_some_way_is_packed(case):
    machines, devices, sizes = case
    places = packed(pool("a", machines=machines, devices=devices), sizes)
    taken = [
        (place.machine, place.first_device + number)
        for place, size in zip(places, sizes, strict=True)
        for number in range(size)
    ]
    assert len(taken) == len(set(taken)) == sum(sizes)
    assert all(0 <= machine < machines and 0 <= device < devices for machine, device in taken)
    assert len({machine for machine, _ in taken}) == -(-sum(sizes) // devices)


def test_too_many_are_refused_in_words():
    with pytest.raises(PlannerError, match=r"3 x 4, 1 x 2 devices do not fit the 3 machines of pool 'a' with 4"):
        packed(pool("a", machines=3, devices=4), [4, 2, 4, 4])


def test_names_are_numbered_by_pool_and_role_in_the_order_of_the_groups():
    taken = seats(
        plan(
            Serving.CRONUS,
            group("a", Role.PREFILL, 2),
            group("a", Role.PREFILL, 1, TP4),
            group("a", Role.DECODE, 1, TP2),
            group("b", Role.DECODE, 1),
        ),
        (pool("a"), pool("b")),
    )
    assert [(seat.name, seat.place.machine, seat.place.first_device) for seat in taken] == [
        ("a-p0", 1, 2),
        ("a-p1", 1, 3),
        ("a-p2", 0, 0),
        ("a-d0", 1, 0),
        ("b-d0", 0, 0),
    ]
