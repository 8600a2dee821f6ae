import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.types import InstanceConfig
from common.errors import ConfigError
from common.hardware import available_cores, pin_to, share_cores, threads_for, usable_core_count
from common.ids import InstanceId
from common.messages.control import Role


def instance(name, **settings):
    return InstanceConfig(id=InstanceId(name), role=Role.DECODE, **settings)


@given(st.integers(1, 300), st.integers(1, 40))
def test_cores_are_shared_whole_and_evenly(cores, instances):
    shares = share_cores(cores, instances)
    assert sum(shares) == max(cores, instances)
    assert max(shares) - min(shares) <= 1


def test_threads_are_as_configured_else_as_pinned_else_a_share():
    all_of_them = [instance("a", threads=7), instance("b", cpu_affinity=(0, 1, 2)), instance("c"), instance("d")]
    assert [threads_for(one, all_of_them, 6) for one in all_of_them] == [7, 3, 1, 1]
    assert threads_for(instance("x"), [instance("x")], 6) == 6


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", None), ("30000 100000", 1), ("150000 100000", 2), ("nonsense", None), ("99999900000 100000", None)],
)
def test_a_quota_limits_the_cores(tmp_path, quota, count):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    here = len(available_cores())
    assert usable_core_count(file) == min(here, here if count is None else count)
    assert usable_core_count(tmp_path / "none") == here


def test_pinning_keeps_a_process_on_its_cores():
    core = available_cores()[-1]
    code = f"from common.hardware import *; pin_to([{core}]); print(available_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"({core},)"


def test_a_core_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"cpu_affinity is \[4095\]"):
        pin_to([4095])
