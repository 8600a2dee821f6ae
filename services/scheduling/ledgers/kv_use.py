"""How much KV an instance will hold at most, by what it holds and how long its answers are expected to be. Pure."""

import math

from services.scheduling.ledgers.work_ledger import Work


def peak_tokens(work: Work) -> float:
    """The most tokens of KV that the sequences of `work` will hold together, if none is added.

    Each of n sequences holds k now and takes one more token per step, until it ends and gives all back: not all are
    largest at the same time.  The tokens still to come are taken to be n even steps of d from a to b, which their mean
    and variance give (of n such numbers it is (b - a)² (n + 1) / (12 (n - 1))).  After t steps, of a to b, there are
    (b - t)/d + 1 sequences of k + t tokens each: most for t = (b + d - k)/2.  Sequences alike (a = b) are all largest
    at the end; very unlike ones hold hardly more than now.
    """
    count = work.mix.sequences
    if count == 0:
        return 0.0
    held, mean = work.kv_tokens / count, work.output_tokens / count
    variance = max(0.0, work.output_squares / count - mean * mean)
    half = math.sqrt(3.0 * variance * (count - 1) / (count + 1))
    first, last = max(0.0, mean - half), mean + half
    if last - first < 1.0:
        return count * (held + mean)
    step = (last - first) / (count - 1)
    at = min(max(first, (last + step - held) / 2), last)
    # A few that are much longer than the rest make no even steps; more than all there is does not come.
    return min((last + step - at) * (held + at) / step, float(work.kv_tokens + work.output_tokens))
