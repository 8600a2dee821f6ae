"""The table of rates: every backend, layout and size, beside raw movers of as many bytes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec

from services.bench.repeats import Measured, OnStep, interleave
from services.bench.report import Row, Where
from services.bench.transfer.cases import MEMCPY, RawCase, TakeCase
from services.bench.transfer.peers.base import Peer
from services.bench.transfer.peers.raw_tcp import RawTcp
from services.bench.transfer.raw import RawMover
from services.bench.transfer.taker import Taken, Taker

Case = TakeCase | RawCase


class Rates(msgspec.Struct, frozen=True):
    """The samples of all cases of one size, taken in turn."""

    size_bytes: int
    samples: Mapping[Case, tuple[Taken, ...]]

    def gb_per_s(self, case: Case) -> Measured:
        """Gigabytes (10⁹) of KV as the source holds it, by the second."""
        return Measured.of(case.size_bytes / 1e9 / sample.seconds for sample in self.samples[case])

    def over(self, case: Case, other: Case) -> Measured:
        """The ratio of two rates, round by round."""
        return self.gb_per_s(case).over(self.gb_per_s(other))

    def over_raw(self, case: Case, mover: str) -> Measured:
        """The ratio to what moves as many bytes raw."""
        return self.over(case, RawCase(mover, self.size_bytes))


async def measure_rates(
    taker: Taker, raw: RawMover, cases: Sequence[TakeCase], movers: Sequence[str], rounds: int, on_step: OnStep
) -> Rates:
    """All `cases`, which are of one size, and all raw `movers`, interleaved."""
    size_bytes = cases[0].size_bytes
    variants: dict[Case, Callable[[], Awaitable[Taken]]] = {
        case: partial(raw.move, case) for case in (RawCase(mover, size_bytes) for mover in movers)
    }
    variants |= {case: partial(taker.take, case) for case in cases}
    return Rates(size_bytes, await interleave(variants, rounds, on_step))


def rate_rows(rates: Rates, peers: Mapping[str, Peer], versions: Mapping[str, str]) -> list[Row]:
    """One for each case. Raw movers' layout is "packed": they know no other."""
    return [{**_row(rates, case), **_about(case, peers, versions)} for case in rates.samples]


def _row(rates: Rates, case: Case) -> Row:
    samples = rates.samples[case]
    return {
        "kind": "rate",
        "where": Where.REAL,
        "repeats": len(samples),
        "backend": case.scheme if isinstance(case, TakeCase) else case.mover,
        "size_bytes": case.size_bytes,
        "layout": case.layout.value if isinstance(case, TakeCase) else "packed",
        "checksum": isinstance(case, TakeCase) and case.checksum,
        "wire_bytes": samples[0].wire_bytes,
        **rates.gb_per_s(case).columns("gb_per_s"),
        **rates.over_raw(case, MEMCPY).columns("over_memcpy"),
        **rates.over_raw(case, RawTcp.name).columns("over_raw_tcp"),
        **Measured.of(sample.cpu_s / (case.size_bytes / 1e9) for sample in samples).columns("cpu_s_per_gb"),
    }


def _about(case: Case, peers: Mapping[str, Peer], versions: Mapping[str, str]) -> Row:
    match case:
        case TakeCase():
            return {"peer": False}
        case RawCase(mover=mover) if mover in peers:
            return {"peer": True, "version": versions[mover], "settings": peers[mover].settings}
        case RawCase():
            return {"peer": True, "version": "numpy", "settings": "np.copyto, one thread"}
