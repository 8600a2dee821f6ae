"""A profile's file: what it is about is checked, and what is none is said to be none."""

import msgspec
import pytest

from common.costs.models import DecodeStepCost, InstanceCosts, MixedStepCost, PrefillCost
from common.costs.shape import StepShape
from services.scheduling.profiles.profile import (
    Fit,
    Origin,
    Point,
    Profile,
    ProfileError,
    Subject,
    decode_profile,
    encode_profile,
)

PROFILE = Profile(
    subject=Subject("f1", "float32"),
    origin=Origin.MEASURED,
    device="a device",
    costs=InstanceCosts(PrefillCost(0.1, 0.01), MixedStepCost(0.1, 0.01, 1e-5, 0.0), DecodeStepCost(0.1, 0.01, 0.0)),
    fits={"prefill": Fit(0.99, 0.01, 0.05, 5, {"tokens": (1, 9)})},
    points=(Point(StepShape(9), True, 0.2, 0.1, 0.3, 3),),
    threads=2,
)


def test_a_file_reads_back_as_it_was() -> None:
    data = encode_profile(PROFILE)
    assert decode_profile(data, "x.json") == PROFILE
    assert b'\n  "device": "a device"' in data


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        (Subject("f2", "float32"), ("model 'f1'", "model 'f2'")),
        (Subject("f1", "bfloat16"), ("dtype 'float32'", "dtype 'bfloat16'")),
        (Subject("f1", "float32", tp=2), ("tp 1", "tp 2")),
        (Subject("f1", "float32", pp=3), ("pp 1", "pp 3")),
    ],
)
def test_another_subject_is_refused_with_the_difference_named(subject: Subject, named: tuple[str, str]) -> None:
    PROFILE.require(PROFILE.subject)
    with pytest.raises(ProfileError) as refusal:
        PROFILE.require(subject)
    assert all(words in str(refusal.value) for words in named)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", encode_profile(PROFILE).replace(b'"tp"', b'"zp"')])
def test_what_is_no_profile_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ProfileError, match=r"x\.json is not a profile"):
        decode_profile(data, "x.json")


def test_another_version_is_refused() -> None:
    data = encode_profile(msgspec.structs.replace(PROFILE, version=99))
    with pytest.raises(ProfileError, match=r"x\.json has version 99"):
        decode_profile(data, "x.json")
