"""What `pdmesh profile` says where it cannot measure, and how it shows what it measured."""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.errors import ConfigError
from common.ids import Generation, InstanceId
from common.messages.control import Load
from common.messages.operator import InstanceInfo, InstanceList
from services.cli.profile import ProfileFlags, profile_table, run_profile
from services.planner.errors import PlannerError
from services.scheduling.profiles.profile import Fit, Origin, Profile, Subject
from tests.unit.cli.http_case import serving
from tests.unit.common.bus_fixtures import registration

NAMES = InstanceId("d0"), InstanceId("d1")
COSTS = InstanceCosts(
    PrefillCost(0.0421, 0.00203), MixedStepCost(0.05, 0.002, 1.5e-5, 1.2e-5), DecodeStepCost(0.0567, 0.0041, 1.1e-5)
)
FITS = {
    "prefill": Fit(0.9987, 0.01, 0.043, 8, {"tokens": (32, 2048)}),
    "mixed": Fit(0.98, 0.01, 0.1, 27, {"tokens": (18, 256)}),
    "decode": Fit(0.97, 0.01, 0.12, 16, {"sequences": (1, 16)}),
}


def shown(profile: Profile) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=100).print(profile_table("d0", profile))
    return out.getvalue().splitlines()


def test_the_table_has_every_coefficient_with_its_unit_and_the_quality_of_its_fit() -> None:
    lines = shown(Profile(Subject("m", "bfloat16"), Origin.MEASURED, "a device", COSTS, FITS, slowdown=3.0))
    assert "d0: a device, bfloat16, emulated 3 × slower" in lines[0]
    (prefill,) = (line for line in lines if "prefill" in line)
    for word in ("base", "42.1", "ms", "0.9987", "4%", "8"):
        assert word in prefill
    for coefficient, value, unit in (
        ("per_sequence", "4100", "µs/sequence"),
        ("per_context", "11", "µs/token"),
        ("per_chunk_context", "15", "µs/token"),
    ):
        (line,) = (line for line in lines if coefficient in line)
        assert value in line
        assert unit in line


def flags(url: str, out: Path, plot: Path | None = None) -> ProfileFlags:
    return ProfileFlags(url, ("all",), out, plot, repeats=1, is_quick=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense"])
def test_nobody_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="--url"):
        run_profile(flags(url, tmp_path), Console(file=io.StringIO()))


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib"):
        run_profile(flags("http://127.0.0.1:1", tmp_path, tmp_path / "x.png"), Console(file=io.StringIO()))


def test_the_command_loads_no_torch_and_ends_with_1_where_nobody_answers(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom services.cli.main import main\n"
        f"sys.argv = ['pdmesh', 'profile', '--url', 'http://127.0.0.1:1', '--out', {str(tmp_path)!r}]\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "no pdmesh gateway answers" in done.stderr
    assert "Traceback" not in done.stderr


def measures_nothing(path: str) -> tuple[int, bytes]:
    if path == "/instances":
        member = registration(Generation(1))
        infos = tuple(InstanceInfo(msgspec.structs.replace(member, instance=name), Load()) for name in NAMES)
        return 200, msgspec.json.encode(InstanceList(infos))
    return 503, b'{"error": {"message": "it was lost", "code": "instance_lost"}}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(measures_nothing) as url:
        yield url


def test_what_was_not_measured_leaves_no_file(url: str, tmp_path: Path) -> None:
    kept = tmp_path / "profiles" / "d1.json"
    kept.parent.mkdir()
    kept.write_bytes(b"of another day")
    with pytest.raises(PlannerError, match="it was lost"):
        run_profile(flags(url, tmp_path / "profiles"), Console(file=io.StringIO()))
    assert [path.name for path in kept.parent.iterdir()] == ["d1.json"]
    assert kept.read_bytes() == b"of another day"


def test_a_file_that_cannot_be_written_is_known_before_anything_is_measured(url: str, tmp_path: Path) -> None:
    (tmp_path / "d0.json").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError, match=r"--out: .*d0\.json' cannot be written"):
            run_profile(flags(url, out), Console(file=io.StringIO()))
