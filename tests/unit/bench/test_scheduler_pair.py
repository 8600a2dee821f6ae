"""The real half of the scheduler's benchmark: its meshes, what clients see as rates, and its rows."""

from pathlib import Path

import pytest

from common.config.load import check_mesh
from common.errors import ConfigError
from common.ids import InstanceId
from services.bench.load.stream import LoadError, StreamTimes
from services.bench.scheduling.pair_meshes import FAST, SLOW, PairSettings, pair_config, requests_for
from services.bench.scheduling.pair_rates import Dealt, Rates, co_running, dealt, decode_instance
from services.bench.scheduling.real_rows import pair_rows, pair_summary
from services.bench.scheduling.real_runs import PairRun, PairServed, check_policies
from services.simulator.runs.report import Report, Spread

SETTINGS = PairSettings(model="smollm2")
FILES = {FAST: Path("f.json"), SLOW: Path("s.json")}


def waves(period_s: float, batch: int, count: int, tokens: int = 10) -> list[StreamTimes]:
    """Answers of a full batch that come and go together: nothing for half a period, then all their tokens."""
    answers = []
    for number in range(count):
        start = (number // batch) * period_s
        events = [start + period_s * (0.5 + 0.5 * (token + 1) / tokens) for token in range(tokens)]
        answers.append(StreamTimes(0.0, events, "x", tokens))
    return answers


def test_only_the_slow_instance_is_slowed_and_each_has_a_core() -> None:
    config = check_mesh(pair_config(SETTINGS, "dp", 3.45, FILES))
    fast, slow = config.instances
    assert (fast.id, slow.id) == ("fast", "slow")
    assert (fast.emulate.slowdown, slow.emulate.slowdown) == (1.0, 3.45)
    assert fast.cpu_affinity != slow.cpu_affinity
    assert (fast.profile, slow.profile) == ("f.json", "s.json")
    alone = check_mesh(pair_config(SETTINGS, "dp", 3.45, FILES, (SLOW,)))
    assert [instance.id for instance in alone.instances] == ["slow"]
    assert alone.instances[0] == slow


@pytest.mark.parametrize("slowdown", [1.0, 1.67, 3.45, 8.0])
def test_there_are_so_many_requests_that_one_is_a_small_part(slowdown: float) -> None:
    requests = requests_for(slowdown)
    assert 0.015 < (1 + slowdown) / requests < 0.02
    assert requests % 2 == 0


def test_rates_are_right_though_batches_come_in_waves() -> None:
    # 6 answers each 2 s, and 6 each 7 s; whichever part of a wave the window begins and ends in.
    for shift in (0.0, 0.3, 1.1, 1.7):
        slow = waves(7.0, 6, 48)
        fast = [StreamTimes(0.0, [at + shift for at in answer.events_at], "x", 10) for answer in waves(2.0, 6, 160)]
        rates = co_running(fast, slow)
        assert rates.fast == pytest.approx(3.0, rel=0.03)
        assert rates.slow == pytest.approx(6 / 7, rel=0.05)
        assert rates.ceiling == pytest.approx((3 + 6 / 7) / 2 / (6 / 7), rel=0.05)


def test_the_end_of_a_run_when_batches_shrink_is_no_rate() -> None:
    fast, slow = waves(1.0, 4, 80), waves(1.0, 4, 80)
    lonely = StreamTimes(0.0, [19.5 + number for number in range(10)], "x", 10)
    assert co_running([*fast, lonely], slow).fast == pytest.approx(4.0, rel=0.03)


def test_too_few_answers_are_no_rate() -> None:
    with pytest.raises(LoadError, match="give more requests"):
        co_running(waves(1.0, 4, 80), waves(9.0, 4, 8))


def answer(instance: str, last_at: float, asked_at: float = 1.0) -> StreamTimes:
    return StreamTimes(asked_at, [last_at], "x", 1, f"prefill=-; decode={instance}; split=0; kv-bytes=0")


def test_what_became_of_a_run() -> None:
    run = dealt([answer("fast", 5.0), answer("fast", 9.0), answer("slow", 11.0)])
    assert run == Dealt(10.0, {"fast": 2, "slow": 1}, pytest.approx(0.2))
    assert dealt([answer("fast", 5.0)]).finish_spread == 1.0
    with pytest.raises(LoadError, match="names no decode instance"):
        decode_instance("")


def a_prediction() -> Report:
    spread = Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    return Report("p", "w", None, 240, 10.0, 24.0, 1.0, 500.0, spread, spread, spread, 0.0, None, ())


def served(slowdown: float) -> PairServed:
    """Two rounds in which dp reaches 0.8 of the ceiling, and capacity 0.9."""
    rates = Rates(slowdown, 1.0)
    gain = rates.ceiling - 1.0
    run = PairRun(SETTINGS, slowdown, ("round_robin", "dp", "capacity"), FILES, Path(), 49152, 240, 2)
    makespans = {"round_robin": 100.0, "dp": 100.0 / (1 + 0.8 * gain), "capacity": 100.0 / (1 + 0.9 * gain)}
    shares: dict[str, int] = {InstanceId("fast"): 180, InstanceId("slow"): 60}
    return PairServed(
        run,
        (rates, rates),
        # The machine was slower in the second round: ratios are of one round.
        {name: (Dealt(span, shares, 0.1), Dealt(2 * span, shares, 0.1)) for name, span in makespans.items()},
        {"round_robin": 1.0, "dp": 0.9, "capacity": 0.95},
    )


def test_a_gain_stands_beside_its_ceiling() -> None:
    rows = pair_rows(served(3.45), dict.fromkeys(("round_robin", "dp", "capacity"), a_prediction()))
    rates, round_robin, dp, capacity = rows
    assert rates["kind"] == "co_running_rates"
    assert rates["fast_over_slow"] == pytest.approx(3.45)
    assert [row["policy"] for row in rows[1:]] == ["round_robin", "dp", "capacity"]
    assert all(row["where"] == "emulated" and row["repeats"] == 2 for row in rows)
    assert round_robin["over_round_robin"] == 1.0
    assert capacity["over_round_robin"] == capacity["over_round_robin_max"] == pytest.approx(1 + 0.9 * 1.225)
    assert capacity["ceiling"] == pytest.approx(2.225)
    assert dp["throughput_tokens_per_s_max"] == pytest.approx(240 * 76 / 100 * (1 + 0.8 * 1.225))
    assert capacity["share_of_fast"] == 0.75
    summary = pair_summary(served(3.45))
    assert summary["ceiling_3.45"] == pytest.approx(1.225)
    assert summary["gain_over_ceiling_3.45"] == pytest.approx(0.9)
    assert summary["dp_gain_over_ceiling_3.45"] == pytest.approx(0.8)


def test_without_a_ceiling_there_is_no_share_of_it() -> None:
    assert "gain_over_ceiling_1" not in pair_summary(served(1.0))


def test_a_comparison_needs_round_robin_and_known_policies_once_each() -> None:
    check_policies(("round_robin", "dp"))
    with pytest.raises(ConfigError, match="without round_robin"):
        check_policies(("dp", "capacity"))
    with pytest.raises(ConfigError, match="each policy once"):
        check_policies(("round_robin", "dp", "dp"))
    with pytest.raises(ConfigError, match="'fastest'; choose among capacity, dp"):
        check_policies(("round_robin", "fastest"))
