"""What is served, and by what: the mesh, its stages alone and one engine with all cores, all with the same keys."""

from typing import Final

import msgspec

from common.config.types import DType, GatewayConfig, InstanceConfig, MeshConfig
from common.errors import ConfigError
from common.ids import InstanceId
from common.messages.control import Role
from services.scheduling.split import resolve_split
from services.simulator.workload.requests import TracedRequest, Workload

P: Final = InstanceId("p0")
D: Final = InstanceId("d0")
_DEADLINE_S: Final = 3600.0
_FEWEST_TURNS: Final = 3
"""The first answers and the last of all clients are not counted."""


class SplitCase(msgspec.Struct, frozen=True):
    """One way to split every prompt."""

    name: str
    split: str | int | float
    """In the words of mesh.yaml."""

    def tokens(self, prompt_tokens: int) -> int:
        """What the prefill stage computes of a prompt."""
        return resolve_split(self.split, prompt_tokens)


FULL: Final = SplitCase("full", "full")
HALF: Final = SplitCase("half", 0.5)
NONE: Final = SplitCase("none", 0)
SPLITS: Final = (FULL, HALF, NONE)


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What everything that is measured has in common. Raises ConfigError."""

    model: str
    dtype: DType = "bfloat16"
    cores: tuple[int, int] = (0, 1)
    """Of P and of D."""
    prompt_tokens: int = 256
    output_tokens: int = 64
    clients: int = 8
    """Each asks for its next request as soon as its last answer has ended."""
    turns: int = 5
    """Requests of each client in one run. An engine that is given as many at once as it decodes together ends them
    together, so that anything but whole turns would be counted wrongly."""
    lone_requests: int = 12
    """Of one run with one client."""
    lone_output_tokens: int = 4
    max_batch: int = 16
    budget: int = 256
    kv_memory: str = "256MiB"
    slo_ttft_s: float = 2.0
    slo_tpot_s: float = 0.1

    def __post_init__(self) -> None:
        if self.prompt_tokens < 3 or self.output_tokens < 2:
            raise ConfigError(
                f"requests of {self.prompt_tokens} + {self.output_tokens} tokens have nothing to split, or no gap "
                "between tokens; give prompts of at least 3 tokens and answers of at least 2"
            )
        if self.turns < _FEWEST_TURNS:
            raise ConfigError(
                f"{self.turns} requests of each client leave nothing to count between the first answers and the last; "
                f"give at least {_FEWEST_TURNS}"
            )

    @property
    def requests(self) -> int:
        """Of one run under load."""
        return self.clients * self.turns

    @property
    def lengths(self) -> str:
        """In words."""
        return f"{self.prompt_tokens}+{self.output_tokens}"

    def loop(self) -> Workload:
        """The requests of a run under load."""
        return self._workload(self.requests, self.output_tokens)

    def lone(self) -> Workload:
        """The requests of a run with one client, which ends with the first tokens."""
        return self._workload(self.lone_requests, self.lone_output_tokens)

    def mesh(self) -> MeshConfig:
        """P and D with a core each; requests say themselves where they are split."""
        gateway = GatewayConfig(
            http="127.0.0.1:0",
            control="tcp://127.0.0.1:0",
            queue=max(256, self.clients),
            deadline_s=_DEADLINE_S,
            allow_placement_override=True,
        )
        return MeshConfig(
            model=self.model,
            dtype=self.dtype,
            split="full",
            gateway=gateway,
            log_level="warning",
            instances=(self.instance(Role.PREFILL), self.instance(Role.DECODE)),
        )

    def instance(self, role: Role) -> InstanceConfig:
        """P or D, in the mesh and alone."""
        is_prefill = role is Role.PREFILL
        return InstanceConfig(
            id=P if is_prefill else D,
            role=role,
            threads=1,
            cpu_affinity=(self.cores[0 if is_prefill else 1],),
            kv_memory=self.kv_memory,
            max_batch=self.max_batch,
            budget=self.budget,
        )

    def engine(self) -> InstanceConfig:
        """One engine that has both cores."""
        return msgspec.structs.replace(self.instance(Role.DECODE), threads=2, cpu_affinity=self.cores)

    def _workload(self, requests: int, output_tokens: int) -> Workload:
        one = TracedRequest(0.0, self.prompt_tokens, output_tokens)
        return Workload(self.lengths, "requests of one size", (one,) * requests, "as answers end")
