"""Asks NVIDIA's aiconfigurator; run by an interpreter that has it, never imported. JSON from stdin, JSON to stdout.

Its dependencies must not meet this project's, so it uses nothing but the standard library beside aiconfigurator.
"""

import contextlib
import importlib
import json
import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer every question; what aiconfigurator prints meanwhile goes to stderr."""
    asked = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="pdmesh-oracle-") as folder:
        estimate = importlib.import_module("aiconfigurator.cli.api").cli_estimate
        logging.disable(logging.INFO)
        for name, config in asked["models"].items():
            (Path(folder) / name).mkdir()
            (Path(folder) / name / "config.json").write_text(json.dumps(config))
        answers = [_answer(estimate, Path(folder), question) for question in asked["questions"]]
    json.dump({"version": version("aiconfigurator"), "answers": answers}, sys.stdout)


def _answer(estimate: Any, folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    try:
        found = estimate(
            str(folder / question["model"]),
            question["system"],
            mode=question["mode"],
            backend_name=question["backend"],
            isl=question["prompt_tokens"],
            osl=question["output_tokens"],
            batch_size=question["batch"],
            tp_size=question["tp"],
            gemm_quant_mode="bfloat16",
            kvcache_quant_mode="bfloat16",
            fmha_quant_mode="bfloat16",
        )
    # It raises errors of many kinds for what it has no figures for, and the other questions must go on.
    except Exception as error:
        return {"problem": _words(f"{type(error).__name__}: {error}", folder)}
    return {
        "ttft_s": found.ttft / 1e3,
        "tpot_s": found.tpot / 1e3,
        "tokens_per_s_per_gpu": found.tokens_per_second_per_gpu,
        "backend_version": str(found.backend_version),
        "problem": _words(str(found.kv_cache_warning or ""), folder),
    }


def _words(problem: str, folder: Path) -> str:
    """Its first 300 letters, without the folder, which has another name every time."""
    return problem.replace(f"{folder}/", "")[:300]


if __name__ == "__main__":
    main()
