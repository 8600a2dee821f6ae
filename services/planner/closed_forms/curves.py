"""What a decode instance does with ever more sequences at once: seconds per request, and gaps between tokens. Pure."""

from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np
from scipy.special import ndtr

from services.planner.closed_forms.chunks import (
    chunk_latency,
    chunk_seconds,
    chunks,
    full_chunk_seconds,
    step_beside_chunks,
)
from services.planner.closed_forms.lengths import Vector
from services.planner.closed_forms.queueing import LATE_SHARE
from services.planner.closed_forms.rates import Factor, Instance, decode_seconds, room, slots

_GROUPS: Final = 64
_HALVINGS: Final = 20
_EVERY_BATCH: Final = 256
"""Batches up to this are all looked at, larger ones in steps of about 2 %."""
_STEP: Final = 1.02
_CROWD: Final = 1.25
"""Sequences at once for each that decodes, where a budget bounds these. Ours: simulated throughput is flat there."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A decode instance in its steady state: `[n]` each, for rising batches from 1, or a single one below 1."""

    batches: Vector
    """Sequences that decode."""
    seconds: Vector
    """Of instance time per request, when always so many decode."""
    tpot_p99_s: Vector
    """99 % of the requests have a mean gap between tokens of at most this."""
    limited_by: Factor
    """What keeps the batch from growing beyond the last."""
    alike: float
    """How many requests alike wait for room in KV like those that there are: one that holds more tokens than others
    waits for the room of several, so that there are fewer. K / mean tokens held / (1 + cv²); ours.
    """

    def within(self, tpot_s: float | None) -> "Curve | None":
        """The batches that keep a TPOT limit when kept full, each with all smaller ones; None where not even the first
        does.
        """
        if tpot_s is None or not (late := self.tpot_p99_s > tpot_s).any():
            return self
        count = int(np.argmax(late))
        if count == 0:
            return None
        kept = self.batches[:count], self.seconds[:count], self.tpot_p99_s[:count]
        return Curve(*kept, Factor.TPOT, self.alike)

    @property
    def most(self) -> int:
        """The largest batch, in whole sequences."""
        return max(1, int(self.batches[-1]))

    @property
    def crowd(self) -> int:
        """Sequences at once that keep it busy: of those beyond the largest batch prompts are computed.

        More would only share the token budget, and each come in more and smaller chunks that all read the KV before
        them.
        """
        return ceil(_CROWD * self.most) if self.limited_by is Factor.BUDGET else self.most

    @property
    def places(self) -> float:
        """Of requests that are served at once, for how long one waits: those of the crowd, or of room in KV."""
        return min(float(self.crowd), self.alike)

    @property
    def least_seconds(self) -> float:
        """Per request, of the batch that is best."""
        return float(self.seconds.min())

    def batch_at(self, rate_rps: float) -> float:
        """How many sequences decode on average when so many requests come per second, up to the best batch.

        The batch whose own rate that is, on the line between whole batches: with fewer it falls behind, with more it is
        faster than requests come, and the batch shrinks.
        """
        best = int(np.argmin(self.seconds)) + 1
        rates = np.maximum.accumulate(1 / self.seconds[:best])
        return float(np.interp(rate_rps, [0.0, *rates], [0.0, *self.batches[:best]]))


def decode_curve(instance: Instance) -> Curve:
    """A D whose prompts are computed elsewhere: L_out·T_d(b, b·ctx) / b seconds per request with b decoding.

    At least L·kv / bandwidth, for the KV comes over its machine's link.
    """
    most, limited_by = slots(instance)
    batches = _batches(most)
    steps = decode_seconds(instance, batches)
    seconds = instance.lengths.outputs.mean * steps / batches
    prompts = instance.lengths.prompts
    receiving = prompts.average(instance.link_seconds(prompts.tokens))
    if receiving >= seconds.min():
        limited_by = Factor.LINK
    return Curve(batches, np.maximum(seconds, receiving), steps, limited_by, _alike(instance))


def whole_curve(instance: Instance) -> Curve:
    """A D that computes prompts as well, in chunks beside n decodes.

    A request takes L_out/n steps.  In N of them there is a chunk of its prompt, as large as the n decodes leave room
    in the budget C; the others are of decodes alone:

        N·(b_m + k_n·n + k_d·n·ctx) + k_n·L + k_c·Σ contexts of the chunks + (L_out/n - N)·T_d(n, n·ctx)

    N is the mean of ceil(L / (C - n)), or all steps where these are fewer: then prompts share steps.  A budget full of
    n decodes and of chunks in proportion, n·L/L_out tokens, is the most: n = C·L_out/(L + L_out), which may be below 1.
    Ours, by what the batching rules do in a steady state.
    """
    most, limited_by = slots(instance)
    batches = _batches(most)
    lengths = instance.lengths
    filled = instance.round_budget * lengths.outputs.mean / lengths.total
    if filled < most:
        batches, limited_by = batches[batches <= filled], Factor.BUDGET
    if not len(batches):
        batches = np.array([filled])
    steps = lengths.outputs.mean / batches
    apart = lengths.prompts.averages(chunks(instance, batches)[0])
    mixed = np.minimum(steps, apart)
    computing = _computing(instance, batches, steps, apart)
    step = decode_seconds(instance, batches)
    # A chunk makes no step shorter, whatever the lines say that were fitted to either kind.
    seconds = np.maximum(computing + (steps - mixed) * step, steps * step)
    tpot = mixed_tpot(instance, batches, mixed / steps)
    return Curve(batches, seconds, tpot, limited_by, _alike(instance))


def _computing(instance: Instance, batches: Vector, steps: Vector, apart: Vector) -> Vector:
    """The steps with chunks of a mean prompt, which has `apart` of them to itself if so many `steps` are there: `[n]`.

    Prompts that share steps save what a step takes beside its chunks.  With several stages, prompts that share a round
    are in its other micro-batches; a round with a chunk in one alone lasts as long as that takes through all stages.
    """
    prompts = instance.lengths.prompts
    full = prompts.averages(chunk_seconds(instance, batches))
    shared = np.maximum(apart - steps, 0.0) * step_beside_chunks(instance, batches)
    if instance.facts.strategy.pp == 1:
        return full - shared
    least = prompts.mean / (instance.round_budget - batches)
    alone = np.clip((steps - least) / np.maximum(apart - least, 1e-9), 0.0, 1.0)
    return full - shared + alone * (prompts.averages(chunk_latency(instance, batches)) - full)


def mixed_tpot(instance: Instance, batches: Vector, share: Vector) -> Vector:
    """The P99 of a request's mean gap, where a `share` of the steps have a chunk: `[n]` to `[n]`.

    Of a request's O steps the chunks of one prompt are in N that follow each other, so the part of them that have one
    varies as with O/N independent draws: its mean is the share, σ² = share·(1 - share)·min(1, N/O).  The mean gap is
    T_d + (T_m - T_d)·share, with a mean chunk, and is late by the steps beyond the share, with full chunks.  Of all
    requests together that is a mixture of normal distributions; ours.
    """
    prompts = instance.lengths.prompts
    run = prompts.averages(chunks(instance, batches)[0])
    alone = decode_seconds(instance, batches)
    mixed = np.maximum(prompts.averages(chunk_latency(instance, batches)) / run, alone)
    full = np.maximum(full_chunk_seconds(instance, batches), mixed)
    beyond = _beyond_share(instance, share, run)
    gap: Vector = np.minimum(alone + (mixed - alone) * share + (full - alone) * beyond, full)
    return gap


def _beyond_share(instance: Instance, share: Vector, run: Vector) -> Vector:
    """How far the part of a request's steps that have a chunk is above its mean, for one request in a hundred."""
    outputs = instance.lengths.outputs.grouped(_GROUPS)
    deviation = np.sqrt((share * (1 - share))[:, np.newaxis] * np.minimum(1.0, run[:, np.newaxis] / outputs.tokens))
    low, high = np.zeros_like(share), 1 - share
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            late = outputs.averages(ndtr(np.nan_to_num(-middle[:, np.newaxis] / deviation, nan=-np.inf)))
        low, high = np.where(late > LATE_SHARE, middle, low), np.where(late > LATE_SHARE, high, middle)
    return high


def _alike(instance: Instance) -> float:
    return max(1.0, room(instance) / (1 + instance.lengths.held_variation))


def _batches(most: int) -> Vector:
    """1 to `most`, with `most` itself."""
    every = np.arange(1.0, min(most, _EVERY_BATCH) + 1)
    if most <= _EVERY_BATCH:
        return every
    count = int(np.ceil(np.log(most / _EVERY_BATCH) / np.log(_STEP)))
    return np.concatenate([every, np.unique(np.rint(np.geomspace(_EVERY_BATCH, most, count + 1)))[1:]])
