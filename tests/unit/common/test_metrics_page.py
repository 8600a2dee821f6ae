"""docs/metrics.md names every metric that /metrics serves, as it is, and nothing else."""

import re
from pathlib import Path

from common.metrics import Metrics

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"\| `(pdmesh_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \| ([^|]+) \| ([^|]+) \|")


def rows() -> dict[str, tuple[str, frozenset[str], tuple[str, str, str]]]:
    found = [match.groups() for match in map(ROW.fullmatch, PAGE.read_text().splitlines()) if match]
    assert len({row[0] for row in found}) == len(found), "a metric has two rows"
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels)), rest) for name, kind, labels, *rest in found}


def served() -> dict[str, tuple[str, frozenset[str]]]:
    registry = Metrics().registry
    families = {family.name: family.type for family in registry.collect()}
    labels = {metric._name: frozenset(metric._labelnames) for metric in registry._collector_to_names}
    return {name: (kind, labels[name]) for name, kind in families.items()}


def test_every_metric_has_a_row_with_its_type_and_labels() -> None:
    assert {name: (kind, labels) for name, (kind, labels, _) in rows().items()} == served()


def test_every_row_says_what_it_means_and_what_others_call_it() -> None:
    for name, (_, _, (meaning, vllm, sglang)) in rows().items():
        assert meaning.strip().endswith("."), name
        assert vllm.strip() == "–" or "`vllm:" in vllm, name
        assert sglang.strip() == "–" or "`sglang:" in sglang, name
