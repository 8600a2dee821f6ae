"""Instances as the balancer wants them: costs of now, chunk and budget, the link between."""

import msgspec
import pytest

from common.ids import InstanceId
from common.kv.layout import KVDType
from common.messages.control import LinkFigures
from services.scheduling.policies.candidates import (
    UNBOUNDED_BUDGET,
    Pairs,
    decode_candidate,
    prefill_candidate,
    present_costs,
)
from services.scheduling.profiles.stage_times import (
    DecodeLoad,
    DecodeStage,
    PrefillLoad,
    PrefillStage,
    TransferStage,
)
from tests.unit.scheduling.costs_case import (
    BLOCK,
    BUDGET,
    COSTS,
    LAYOUT,
    SLOTS,
    TOKEN_BYTES,
    a_decode,
    a_member,
    a_mesh,
    a_prefill,
)

LINK = (InstanceId("p0"), InstanceId("d0"))


def test_costs_are_corrected_by_what_the_instance_says_of_itself() -> None:
    assert present_costs(a_decode(cost_factor=2.5)) == COSTS.scaled(2.5)
    assert present_costs(a_decode()) is COSTS
    assert present_costs(msgspec.structs.replace(a_decode(), load=None)) is COSTS, "before its first heartbeat"
    assert present_costs(a_decode(member=a_member("d0", costs=None), cost_factor=2.5)) is None


@pytest.mark.parametrize("chunk", [None, 128])
def test_p_computes_in_its_chunks_what_it_has_to(chunk: int | None) -> None:
    view = a_prefill("p0", 300, 40, member=a_member("p0", budget=chunk), cost_factor=2.0)
    least_s = 2.0 * (COSTS.decode.base + COSTS.decode.per_sequence)
    stage = PrefillStage(COSTS.scaled(2.0).prefill, chunk, least_s)
    assert prefill_candidate(view).view is view
    busy = prefill_candidate(view).busy
    assert busy.stage.least_s == pytest.approx(least_s), "a step of one decode"
    assert busy == msgspec.structs.replace(stage, least_s=busy.stage.least_s).under(PrefillLoad((300, 40)))
    assert busy.backlog_tokens == 340


def test_d_has_its_budget_its_slots_and_its_load() -> None:
    load = DecodeLoad(5, 900, 300, 2)
    stage = DecodeStage(COSTS.scaled(2.0).mixed, COSTS.scaled(2.0).decode, BUDGET, SLOTS)
    assert decode_candidate(a_decode(load=load, cost_factor=2.0)).busy == stage.under(load)
    unbounded = msgspec.structs.replace(a_member("d0"), budget=None)
    assert decode_candidate(a_decode(member=unbounded)).busy.room == UNBOUNDED_BUDGET


def test_a_pair_has_the_link_that_was_measured() -> None:
    p, d = a_prefill(), a_decode()
    links = {LINK: LinkFigures("tcp", 1e9, 0.002), (InstanceId("p1"), InstanceId("d0")): LinkFigures("shm", 1e10, 0.0)}
    source, target = prefill_candidate(p), decode_candidate(d)
    pair = Pairs(a_mesh(p, d, links=links)).pair(source, target)
    assert pair.transfer == TransferStage(TOKEN_BYTES, 1e9, 0.002)
    assert (pair.prefill, pair.decode, pair.block_size) == (source.busy, target.busy, BLOCK)
    assert Pairs(a_mesh(p, d)).pair(source, target).transfer == TransferStage(TOKEN_BYTES, None, 0.0)


def test_the_narrower_type_travels_and_the_blocks_are_those_of_d() -> None:
    narrow = msgspec.structs.replace(LAYOUT, dtype=KVDType.BFLOAT16, block_size=64)
    d = a_decode(member=msgspec.structs.replace(a_member("d0"), layout=narrow))
    pairs = Pairs(a_mesh())
    pair = pairs.pair(prefill_candidate(a_prefill()), decode_candidate(d))
    assert (pair.transfer.bytes_per_token, pair.block_size) == (TOKEN_BYTES // 2, 64)
    assert pairs.token_bytes(LAYOUT, LAYOUT) == TOKEN_BYTES
    assert pairs.token_bytes(narrow, LAYOUT) == pairs.token_bytes(LAYOUT, narrow) == TOKEN_BYTES // 2
