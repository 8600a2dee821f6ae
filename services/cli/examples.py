"""Examples at the end of the help texts, by command."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "up": (
            "pdmesh up",
            "pdmesh up --prefill 2 --decode 1 --port 0",
            "pdmesh up --config mesh.yaml",
        ),
        "gateway": ("pdmesh gateway --config mesh.yaml",),
        "prefill": ("pdmesh prefill --config mesh.yaml --instance p0",),
        "decode": ("pdmesh decode --config mesh.yaml --instance d0",),
        "links": (
            "pdmesh links",
            "pdmesh links --url http://10.0.0.1:8000 --json",
        ),
        "status": (
            "pdmesh status --watch",
            "pdmesh status --json",
        ),
        "drain": ("pdmesh drain d0 --wait 120",),
        "resume": ("pdmesh resume d0",),
        "chat": (
            "pdmesh chat",
            "pdmesh chat 'What is the capital of France?' --temperature 0",
        ),
        "trace": (
            "pdmesh trace",
            "pdmesh trace r-0e6d41b2",
            "pdmesh trace --limit 100 --perfetto timeline.json",
        ),
        "profile": (
            "pdmesh profile --out profiles",
            "pdmesh profile --instance d0 --out d0.json --plot d0.png",
        ),
        "simulate": ("pdmesh simulate --cluster docs/examples/a100-a10.yaml --policy cronus,dp --rate 2,4",),
        "plan": (
            "pdmesh plan docs/examples/plan-a100-a10.yaml --runnable --explain -o mesh.yaml",
            "pdmesh plan cluster.yaml --objective price --rate 8 --runnable --all plans",
        ),
        "compose": (
            "pdmesh compose mesh.yaml -o mine.yaml",
            "pdmesh compose mesh.yaml --gateway-host 10.0.0.1",
        ),
        "model fetch": ("pdmesh model fetch smollm2",),
        "model list": ("pdmesh model list --json",),
        "config show": (
            "pdmesh config show --config mesh.yaml",
            "pdmesh config show --key gateway.deadline_s",
        ),
        "config check": ("pdmesh config check --config mesh.yaml",),
        "keys init": (
            "pdmesh keys init --config mesh.yaml --out keys",
            "pdmesh keys init --instance d0",
        ),
        "keys revoke": ("pdmesh keys revoke d0",),
        "keys api": (
            "pdmesh keys api alice --file api-keys",
            "pdmesh keys api alice --file api-keys --revoke",
        ),
        "bench transfer": ("pdmesh bench transfer --json transfer.json --peers",),
        "bench engine": (
            "pdmesh bench engine --json engine.json --peers",
            "pdmesh bench engine --json engine.json --workloads AC --rounds 3",
        ),
        "bench policies": (
            "pdmesh bench policies --simulated --json simulated.json --data traces",
            "pdmesh bench policies --real --mesh mesh.yaml --trace azure_conv --divide 8 --json mesh.json",
        ),
        "bench scheduler": (
            "pdmesh bench scheduler --simulated --json simulated.json",
            "pdmesh bench scheduler --real --json real.json",
        ),
        "bench planner": ("pdmesh bench planner --json planner.json --data traces",),
        "bench gateway": ("pdmesh bench gateway --json gateway.json",),
        "bench serve": ("pdmesh bench serve --json serve.json --rounds 3",),
        "bench prefixes": ("pdmesh bench prefixes --json prefixes.json --data traces",),
        "bench parity": ("pdmesh bench parity --json parity.json",),
    }
)
"""A test reads each with the parser."""


def examples(command: str) -> str:
    """The epilog of a command's help: a paragraph for each, since paragraphs become lines."""
    found = EXAMPLES[command]
    return "\n\n".join(["Examples:" if len(found) > 1 else "Example:", *(f"$ {line}" for line in found)])
