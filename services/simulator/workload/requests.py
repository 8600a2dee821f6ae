"""A workload: requests by length and arrival, and the plainest ways to make a smaller one."""

import math

import msgspec

from services.simulator.workload.errors import WorkloadError

MAX_TOKENS = 10_000_000
"""The most tokens that a prompt or an output may have: more is taken for a damaged file."""


class TracedRequest(msgspec.Struct, frozen=True):
    """One request: when it comes, and how many tokens go in and out."""

    arrival_s: float
    """Seconds from the start of the workload; finite, never negative."""
    prompt_tokens: int
    output_tokens: int
    """Both from 1 to MAX_TOKENS."""
    hash_ids: tuple[int, ...] = ()
    """One identity for every 512 tokens of the prompt, the last for what is left; empty unless the reader kept them.

    Equal identities at the start of two requests say that their prompts start with the same tokens.
    """
    user: str = ""
    """Whom or what it is for: its class, where output lengths are predicted by class."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.arrival_s) and self.arrival_s >= 0):
            raise WorkloadError(f"arrival_s is {self.arrival_s!r}; give finite seconds from 0")
        for name, tokens in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if not 1 <= tokens <= MAX_TOKENS:
                raise WorkloadError(f"{name} is {tokens!r}; a length is from 1 to {MAX_TOKENS:,} tokens")


class Workload(msgspec.Struct, frozen=True):
    """Requests in the order of their arrival; at least one."""

    name: str
    source: str
    """Where the lengths come from, for a person who reads a report."""
    requests: tuple[TracedRequest, ...]
    arrivals: str | None = None
    """How the arrivals came about, for that person; None where there are lengths only, and every arrival is 0."""

    def __post_init__(self) -> None:
        if not self.requests:
            raise WorkloadError(f"workload {self.name!r} has no requests; it needs at least one")
        times = [request.arrival_s for request in self.requests]
        if times != sorted(times):
            raise WorkloadError(f"the requests of workload {self.name!r} are not in the order of their arrival_s")


def first(workload: Workload, requests: int) -> Workload:
    """Its first `requests` requests, arrivals as they are. Raises WorkloadError where it has fewer."""
    available = len(workload.requests)
    if not 1 <= requests <= available:
        raise WorkloadError(f"the first {requests} requests of {workload.name!r} were asked for; it has {available}")
    if requests == available:
        return workload
    return msgspec.structs.replace(
        workload, name=f"{workload.name}-first{requests}", requests=workload.requests[:requests]
    )


def scaled(workload: Workload, divisor: int) -> Workload:
    """Every length divided by `divisor` and rounded up, for small machines; arrivals as they are.

    Drops `hash_ids`: they name blocks of the full length.  Raises WorkloadError for a divisor below 1.
    """
    if divisor < 1:
        raise WorkloadError(f"divisor is {divisor!r}; lengths can be divided by 1 or more")
    if divisor == 1:
        return workload
    return msgspec.structs.replace(
        workload,
        name=f"{workload.name}-div{divisor}",
        source=f"{workload.source}; lengths divided by {divisor}, rounded up",
        requests=tuple(
            msgspec.structs.replace(
                request,
                prompt_tokens=-(-request.prompt_tokens // divisor),
                output_tokens=-(-request.output_tokens // divisor),
                hash_ids=(),
            )
            for request in workload.requests
        ),
    )
