"""The profiles that a machine of a plan file names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from common.errors import ConfigError
from services.scheduling.profiles.profile import Profile, ProfileError, decode_profile
from services.simulator.hardware.strategy import Strategy


class Measured(msgspec.Struct, frozen=True):
    """The profile of one strategy, and its file."""

    profile: Profile
    path: Path


def read_profiles(folder: Path, files: Sequence[str]) -> Mapping[Strategy, Measured]:
    """The profiles in `files`, taken from `folder`, by the strategy that was measured.

    All are of one machine: its instances must have been measured alike.  Raises ProfileError for a file that is none,
    ConfigError for profiles that contradict each other.
    """
    found: dict[Strategy, Measured] = {}
    for file in files:
        path = folder / file
        profile = _read(path)
        strategy = Strategy(profile.subject.tp, profile.subject.pp)
        if strategy in found:
            raise ConfigError(
                f"{str(found[strategy].path)!r} and {str(path)!r} are both of {strategy}; keep one of each strategy"
            )
        found[strategy] = Measured(profile, path)
    for field in ("slowdown", "threads"):
        values = {getattr(measured.profile, field) for measured in found.values()}
        if len(values) > 1:
            shown = ", ".join(sorted(map(str, values)))
            raise ConfigError(f"its profiles were measured with {field} {shown}; one machine has one: profile again")
    return found


def _read(path: Path) -> Profile:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"profile {str(path)!r} cannot be read: {error.strerror}") from error
    return decode_profile(data, str(path))
