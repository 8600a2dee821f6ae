"""Compiling kernels, keeping them, and choosing one."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from common.compiled import load_library
from common.kv.intervals import Interval
from transfer.kernels.base import BoundCopy, CopySpec, Kernel
from transfer.kernels.registry import kernel_for
from transfer.kernels.self_check import agrees_with_torch
from transfer.kernels.torch_kernel import TorchKernel

CPU = torch.device("cpu")
GOOD = 'extern "C" int answer() { return 42; }'


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "small.cpp"
    path.write_text(GOOD)
    return path


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_compiles_once(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "kernels"
    first = load_library(source, (), folder)
    assert first is not None
    assert first.answer() == 42
    (made,) = libraries(folder)
    written = made.stat().st_mtime_ns
    assert load_library(source, (), folder) is not None
    assert libraries(folder) == [made]
    assert made.stat().st_mtime_ns == written


def test_another_source_or_header_is_another_library(source: Path, tmp_path: Path) -> None:
    header, folder = tmp_path / "small.h", tmp_path / "kernels"
    for text in ("// one", "// two"):
        header.write_text(text)
        assert load_library(source, (header,), folder) is not None
    source.write_text(GOOD.replace("42", "43"))
    changed = load_library(source, (header,), folder)
    assert changed is not None
    assert changed.answer() == 43
    assert len(libraries(folder)) == 3


def test_a_damaged_library_is_made_again(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    load_library(source, (), folder)
    (made,) = libraries(folder)
    # A new file: the one that is loaded must not change under this process.
    (folder / "new").write_bytes(b"cut off")
    os.replace(folder / "new", made)
    again = load_library(source, (), folder)
    assert again is not None
    assert again.answer() == 42


def test_several_at_once(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda _: load_library(source, (), folder), range(4)))
    assert all(library is not None and library.answer() == 42 for library in loaded)
    assert len(libraries(folder)) == 1


@pytest.mark.parametrize("why", ["no C++ compiler", "error", "File exists", "version"])
def test_what_cannot_be_compiled_is_one_log_line(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    folder, compilers = tmp_path / "kernels", ["c++"]
    match why:
        case "no C++ compiler":
            compilers = ["no-such-compiler"]
        case "error":
            source.write_text("this is no C++")
        case "File exists":
            folder.write_text("a file is in the way")
        case "version":
            broken = tmp_path / "broken-c++"
            broken.write_text("#!/bin/sh\nexit 3\n")
            broken.chmod(0o755)
            compilers = [str(broken)]
    with caplog.at_level(logging.WARNING):
        assert load_library(source, (), folder, compilers) is None
    (record,) = caplog.records
    assert why.lower() in record.getMessage().lower()


class _Wrong(Kernel):
    """As torch's, but for one thing."""

    name = "wrong"

    def __init__(self, thing: str) -> None:
        self._thing = thing

    def bind(self, spec: CopySpec) -> BoundCopy:
        return _WrongCopy(TorchKernel().bind(spec), self._thing)


class _WrongCopy(BoundCopy):
    def __init__(self, right: BoundCopy, thing: str) -> None:
        self._right = right
        self._thing = thing

    def gather(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        count = self._right.gather(views, tokens, staging)
        if self._thing == "gather":
            staging[-1] ^= 1
        return count + (self._thing == "count")

    def scatter(self, views: Interval, tokens: Interval, staging: memoryview) -> int:
        if self._thing == "scatter":
            return 0
        return self._right.scatter(views, tokens, staging)


@pytest.mark.parametrize(("thing", "agrees"), [("gather", False), ("scatter", False), ("count", False), ("", True)])
def test_the_self_check_sees(thing: str, agrees: bool) -> None:
    assert agrees_with_torch(_Wrong(thing), CPU) is agrees


def test_the_compiled_kernel_is_chosen(tmp_path: Path) -> None:
    assert kernel_for(CPU, threads=2, cache=tmp_path).name == "cpp"


def test_torch_is_the_last_resort(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kernels").write_text("a file is in the way")
    assert kernel_for(CPU, cache=tmp_path).name == "torch"
    assert len(caplog.records) == 1
    assert kernel_for(torch.device("meta"), cache=tmp_path).name == "torch"


def test_without_cupy_a_gpu_is_served_by_torch(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a CUDA or ROCm device to be absent")
    assert kernel_for(torch.device("cuda")).name == "torch"
    assert "packing with torch" in caplog.text
