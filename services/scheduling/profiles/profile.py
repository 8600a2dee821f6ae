"""The profile of an instance: what its steps cost, how well that is known, and of what it holds.

One file serves router, balancer, simulator and planner.
"""

from enum import StrEnum

import msgspec

from common.costs.models import InstanceCosts
from common.costs.shape import StepShape
from common.errors import PdmeshError

PROFILE_VERSION = 1


class ProfileError(PdmeshError, ValueError):
    """A profile cannot be used; the message names what differs and the remedy."""


class Origin(StrEnum):
    """Where the coefficients come from."""

    MEASURED = "measured"
    SPEC = "spec"
    """Computed from published figures of the device; nothing was run."""


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured step: median, least and most seconds of `repeats`."""

    shape: StepShape
    is_prefill: bool
    """A whole prompt in one step, alone: a point of T_pre."""
    seconds: float
    seconds_min: float
    seconds_max: float
    repeats: int


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well a linear model fits its points, and where it was measured."""

    r2: float
    residual_rms_s: float
    worst_relative_residual: float
    """|predicted - measured| / measured, the largest over the points."""
    points: int
    ranges: dict[str, tuple[int, int]]
    """Least and most value of each variable among the points: outside, the model extrapolates."""


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a profile is about: it is valid for nothing that differs in one of these."""

    model: str
    """Fingerprint of the model, as in KVLayout.model; for Origin.SPEC the name of the architecture."""
    dtype: str
    tp: int = 1
    pp: int = 1


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The costs of one instance. Written by `pdmesh profile` or computed from a specification."""

    subject: Subject
    origin: Origin
    device: str
    """In words: the processor's or accelerator's name."""
    costs: InstanceCosts
    fits: dict[str, Fit]
    """By model: "prefill", "mixed", "decode"."""
    points: tuple[Point, ...] = ()
    threads: int | None = None
    slowdown: float = 1.0
    """Above 1: the device was emulated, and every figure derived from this profile is."""
    kv_capacity_tokens: int | None = None
    date: str = ""
    version: int = PROFILE_VERSION

    def require(self, subject: Subject) -> None:
        """Raise ProfileError where the profile is not about `subject`."""
        for field in Subject.__struct_fields__:
            profiled, wanted = getattr(self.subject, field), getattr(subject, field)
            if profiled != wanted:
                raise ProfileError(
                    f"the profile is of {field} {profiled!r}, and the instance has {field} {wanted!r}; "
                    "profile the instance itself with `pdmesh profile`"
                )


def decode_profile(data: bytes, source: str) -> Profile:
    """The profile in a JSON file's bytes; `source` names the file in errors. Raises ProfileError."""
    try:
        profile = msgspec.json.decode(data, type=Profile)
    except msgspec.MsgspecError as error:
        raise ProfileError(f"{source} is not a profile: {error}; write one with `pdmesh profile`") from error
    if profile.version != PROFILE_VERSION:
        raise ProfileError(
            f"{source} has version {profile.version}, and this pdmesh reads {PROFILE_VERSION}; profile again"
        )
    return profile


def encode_profile(profile: Profile) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"
