from pathlib import Path

from common.hardware import cpu_name


def test_the_processor_is_named_as_the_system_names_it(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: A Processor @ 3.1 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    assert cpu_name(info) == "A Processor @ 3.1 GHz"


def test_without_a_name_it_is_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_name(tmp_path / "cpuinfo")
    assert cpu_name(tmp_path / "nothing")
