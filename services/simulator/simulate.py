"""The one function behind every simulated figure."""

from collections.abc import Callable

from services.scheduling.ledgers.output_lengths import OutputLengths
from services.scheduling.policies.routing import PlacementPolicy
from services.simulator.cluster.cluster import Cluster
from services.simulator.runs.report import Report, make_report
from services.simulator.simulation import Simulation
from services.simulator.workload.requests import Workload


def simulate(
    cluster: Cluster,
    workload: Workload,
    policy: PlacementPolicy,
    *,
    policy_name: str = "",
    prefill_slots: int = 2,
    decode_batches: int = 2,
    max_tokens: int | None = None,
    output_lengths: str | OutputLengths = "quantile",
    checked: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Report:
    """Serve `workload` on `cluster` under `policy`; pure: the same arguments give the same report.

    `max_tokens` and `output_lengths` are what Clients takes them for: the cap that requests name, and the predictor
    of output lengths. `checked` verifies the books of every engine at every step, those of the gateway at every event.
    `on_progress` hears, at most 100 times, the share of the requests that have ended. Raises SimulationError, or
    ConfigError for a predictor that is not known.
    """
    simulation = Simulation(
        cluster,
        policy,
        workload,
        prefill_slots=prefill_slots,
        decode_batches=decode_batches,
        max_tokens=max_tokens,
        output_lengths=output_lengths,
        checked=checked,
        on_progress=on_progress,
    )
    simulation.run()
    return make_report(
        policy_name or type(policy).__name__,
        workload.name,
        workload.arrivals,
        simulation.records,
        simulation.gaps,
        list(simulation.workers.values()),
    )
