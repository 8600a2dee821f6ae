"""How far reality is from a profile just now: one factor, from what each step was predicted to take and took. Pure."""

import math
from typing import Final

import msgspec

_GAIN: Final = 0.1
"""Share of one observation in the factor: it follows a lasting change within some twenty steps."""
_BAND: Final = 2.0
"""One observation counts as at most so many times the present factor, or as its inverse."""
_MOST: Final = 16.0
"""The factor stays in [1 / _MOST, _MOST]: further away the profile is of something else."""


class Correction(msgspec.Struct, frozen=True):
    """Predictions are multiplied by `factor`.

    It is the exponentially weighted mean of measured / predicted: the mean itself and not that of logarithms, so that
    a sum of predictions stays without bias under noise.  A single step that was interrupted moves it by a tenth at
    most, since an observation is first brought into a band around the present factor; a lasting change still arrives,
    in powers of the band.
    """

    factor: float = 1.0

    def observe(self, predicted_s: float, measured_s: float) -> "Correction":
        """After one more step. What is not a positive number of seconds says nothing and changes nothing."""
        if not all(math.isfinite(seconds) and seconds > 0 for seconds in (predicted_s, measured_s)):
            return self
        ratio = min(max(measured_s / predicted_s, self.factor / _BAND), self.factor * _BAND)
        factor = self.factor + _GAIN * (ratio - self.factor)
        return Correction(min(max(factor, 1 / _MOST), _MOST))
