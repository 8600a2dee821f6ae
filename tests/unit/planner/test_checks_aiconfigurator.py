"""The oracle's side: asking an interpreter of its own, with a tiny stand-in for what is installed there."""

import stat
import sys
from pathlib import Path

import msgspec
import pytest

from common.errors import ConfigError
from services.planner.checks.aiconfigurator import Answer, Mode, Question, asker, hf_config
from services.simulator.hardware.models import find_model, from_hf_config

STAND_IN = """
import json
from pathlib import Path
from types import SimpleNamespace

def cli_estimate(model_path, system_name, *, mode, backend_name, isl, osl, batch_size, tp_size, **quantisation):
    config = json.loads(Path(model_path, "config.json").read_text())
    assert set(quantisation.values()) == {"bfloat16"}
    print("something for a person")
    if system_name == "unheard_of":
        raise RuntimeError(f"no figures for {model_path}")
    return SimpleNamespace(
        ttft=float(isl), tpot=float(batch_size), tokens_per_second_per_gpu=float(config["num_hidden_layers"] * tp_size),
        backend_version=f"{backend_name} 1", kv_cache_warning="tight" if osl > 500 else None,
    )
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter where the stand-in is installed; it is started as `python -I probe.py`."""
    site = tmp_path / "site"
    (site / "aiconfigurator" / "cli").mkdir(parents=True)
    (site / "aiconfigurator" / "__init__.py").touch()
    (site / "aiconfigurator" / "cli" / "__init__.py").touch()
    (site / "aiconfigurator" / "cli" / "api.py").write_text(STAND_IN)
    (site / "aiconfigurator-9.8.7.dist-info").mkdir()
    (site / "aiconfigurator-9.8.7.dist-info" / "METADATA").write_text("Name: aiconfigurator\nVersion: 9.8.7\n")
    run = f"import runpy, sys; sys.path.insert(0, {str(site)!r}); runpy.run_path(sys.argv[1], run_name='__main__')"
    return script(tmp_path / "python", f'shift; exec {sys.executable} -c "{run}" "$@"')


def script(file: Path, line: str) -> Path:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def question(**changes: object) -> Question:
    plain = Question(Mode.PREFILL, "a100_sxm", "LLaMA3-8B", 1, 1024, 256, 16)
    return msgspec.structs.replace(plain, **changes)


def test_questions_are_answered_in_seconds_and_in_order(python: Path) -> None:
    found = asker(python)([question(), question(tp=4, output_tokens=512)], [find_model("LLaMA3-8B")])
    assert found.version == "9.8.7"
    assert found.answers == (
        Answer(ttft_s=1.024, tpot_s=0.016, tokens_per_s_per_gpu=32, backend_version="vllm 1"),
        Answer(ttft_s=1.024, tpot_s=0.016, tokens_per_s_per_gpu=128, backend_version="vllm 1", problem="tight"),
    )


def test_one_question_without_an_answer_does_not_end_the_others(python: Path) -> None:
    found = asker(python)([question(system="unheard_of"), question()], [find_model("LLaMA3-8B")])
    assert found.answers[0] == Answer(problem="RuntimeError: no figures for LLaMA3-8B")
    assert found.answers[1].ttft_s == 1.024


def test_the_configuration_that_it_gets_is_the_model() -> None:
    model = find_model("Llama2-70B")
    assert from_hf_config(hf_config(model), model.name) == model


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        asker(tmp_path / "nowhere")([question()], [])


def test_an_interpreter_without_aiconfigurator_says_what_to_install(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", "echo 'Traceback' >&2; echo 'ModuleNotFoundError: no such' >&2; exit 1")
    with pytest.raises(ConfigError, match=r"ModuleNotFoundError: no such.*pip install aiconfigurator"):
        asker(bare)([question()], [])


@pytest.mark.parametrize(
    ("output", "said"),
    [("no json", "cannot be read"), ('{"version": "1", "answers": []}', "answered 0 of 1")],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, output: str, said: str) -> None:
    odd = script(tmp_path / "odd", f"echo '{output}'")
    with pytest.raises(ConfigError, match=said):
        asker(odd)([question()], [])
