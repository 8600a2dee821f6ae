"""Which versions of the messages a release speaks."""

import msgspec


class VersionRange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """All versions from `oldest` to `newest`, both included."""

    oldest: int
    newest: int

    def __post_init__(self) -> None:
        if not 0 <= self.oldest <= self.newest:
            raise ValueError(f"not a range of versions: {self.oldest!r} to {self.newest!r}")

    def common_with(self, other: "VersionRange") -> int | None:
        """The newest version that both speak."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None
