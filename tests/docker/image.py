"""The image of this checkout, built by its Dockerfile on a base that can be had here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from tests.docker.engine import ROOT, Engine, NoEngine

PUBLIC_BASE = "python:3.11-slim"
_SOURCES = ("common", "transfer", "services")
_PACKAGES = "python3,python3-venv,ca-certificates"
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def build_image(engine: Engine, folder: Path, tag: str) -> None:
    """Build `tag` from the sources as they lie here; `folder` is empty and takes everything that is needed for it."""
    context = folder / "context"
    context.mkdir()
    for name in _SOURCES:
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Dockerfile", ".dockerignore"):
        shutil.copyfile(ROOT / name, context / name)
    arguments = {"BASE": _base(engine, folder), "TORCH": _torch(context / "wheels")}
    if index := os.environ.get("PIP_INDEX_URL"):
        arguments["PIP_INDEX_URL"] = index
    flags = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    # A build on the host's network finds the package index by the host's means.
    engine.docker("build", "--network", "host", "--tag", tag, *flags, str(context), timeout_s=900)


def _base(engine: Engine, folder: Path) -> str:
    """The public base where the engine has it or an own engine cannot make one; else one of this system's packages."""
    if PUBLIC_BASE in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        return PUBLIC_BASE
    if os.geteuid() == 0 and shutil.which("debootstrap"):
        return _own_base(engine, folder)
    try:
        engine.docker("pull", PUBLIC_BASE, timeout_s=300)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise NoEngine(f"no base image: {PUBLIC_BASE} cannot be pulled, and debootstrap is not there") from error
    return PUBLIC_BASE


def _own_base(engine: Engine, folder: Path) -> str:
    root, archive, name = folder / "root", folder / "root.tar", f"pdmesh-test-base-{os.getpid()}"
    _shell("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(root))
    if _AUTHORITIES.is_file():
        # The package index is reached as from the host, whose authorities may be its own.
        shutil.copyfile(_AUTHORITIES, root / _AUTHORITIES.relative_to("/"))
    _shell("tar", "-C", str(root), "-cf", str(archive), ".")
    shutil.rmtree(root)
    engine.docker("import", "--change", f"ENV PIP_CERT={_AUTHORITIES}", "-", name, feed=archive, timeout_s=120)
    archive.unlink()
    return name


def _torch(wheels: Path) -> str:
    """The tests' own torch as pip's arguments: a wheel that pip finds here, else the public build for CPUs."""
    version = torch.__version__
    if version.endswith("+cpu"):
        command = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(wheels),
            f"torch=={version}",
        )
        if subprocess.run(command, capture_output=True, timeout=600).returncode == 0:
            return f"torch=={version}"
    return f"torch=={version.partition('+')[0]} --index-url https://download.pytorch.org/whl/cpu"


def _shell(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise AssertionError(
            f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        )
