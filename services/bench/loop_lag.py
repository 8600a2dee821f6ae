"""How late the event loops of a running mesh are: of the gateway and of every instance, by one reading."""

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from common.loop_lag import LoopLagFigures
from services.bench.transfer.errors import BenchError

GATEWAY = "gateway"
_OWN = {"pdmesh_loop_lag_p99_seconds": "p99_s", "pdmesh_loop_lag_max_seconds": "max_s"}
_OF_INSTANCES = {"pdmesh_instance_lag_p99_s": "p99_s", "pdmesh_instance_lag_max_s": "max_s"}


async def read_loop_lag(url: str) -> dict[str, LoopLagFigures]:
    """By name ("gateway", then the instances' ids), of the gateway at `url`. Raises BenchError.

    An instance's figures are those of its last heartbeat.
    """
    try:
        async with aiohttp.ClientSession(url) as client, client.get("/metrics") as response:
            text = await response.text()
    except aiohttp.ClientError as error:
        raise BenchError(f"{url}: the gateway's metrics cannot be read: {error}") from error
    return loop_lag_of(text)


def loop_lag_of(metrics: str) -> dict[str, LoopLagFigures]:
    """The figures in a text exposition; a process that has only one of the two is left out."""
    found: dict[str, dict[str, float]] = {GATEWAY: {}}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in _OWN:
                found[GATEWAY][_OWN[sample.name]] = sample.value
            elif sample.name in _OF_INSTANCES:
                figures = found.setdefault(sample.labels["instance"], {})
                figures[_OF_INSTANCES[sample.name]] = sample.value
    return {name: LoopLagFigures(**figures) for name, figures in found.items() if len(figures) == 2}
