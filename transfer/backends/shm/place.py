"""Where two processes can meet: a namespace of Unix sockets, named so that both can tell whether they share it."""

import errno
import hashlib
import os
import secrets
import socket
from pathlib import Path

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NETWORK = Path("/proc/self/ns/net")
_SUFFIX = ".pdmesh"
_LONGEST_PATH = 107


class Place(msgspec.Struct, frozen=True):
    """Abstract socket names (`folder` None), which belong to one network namespace of one kernel; or a folder."""

    name: str
    """The same for all who can meet here, and for nobody else."""
    folder: Path | None = None

    @classmethod
    def here(cls, folder: Path | None = None) -> "Place":
        """This process's network namespace, or `folder`, under whatever path others see it. Raises OSError."""
        shared = os.stat(_NETWORK if folder is None else folder)
        kind = "network" if folder is None else "folder"
        seed = f"{_BOOT_ID.read_text().strip()} {kind} {shared.st_dev} {shared.st_ino}"
        return cls(hashlib.sha256(seed.encode()).hexdigest()[:16], folder)

    def new_endpoint(self) -> str:
        """One that nobody has."""
        return f"shm://{self.name}/{secrets.token_hex(16)}"

    def has(self, endpoint: str) -> bool:
        """Whether `endpoint` is in this place; raises ValueError for something that is not an endpoint."""
        return _parse(endpoint)[0] == self.name

    def address(self, endpoint: str) -> str:
        """The socket address of an endpoint that is in this place; raises ValueError for one that is not."""
        place, socket_name = _parse(endpoint)
        if place != self.name:
            raise ValueError(f"{endpoint!r} is of another place than {self.name!r}")
        if self.folder is None:
            return f"\0pdmesh/{socket_name}"
        path = str(self.folder / f"{socket_name}{_SUFFIX}")
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ValueError(
                f"a socket's path has at most {_LONGEST_PATH} bytes, {path!r} has more: use another folder"
            )
        return path

    def leave(self, endpoint: str) -> None:
        """What a listener does when it closes: take its socket out of the folder."""
        if self.folder is not None:
            Path(self.address(endpoint)).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Take out the sockets of processes that died without leaving. Those of living ones are not touched."""
        for path in [] if self.folder is None else self.folder.glob(f"*{_SUFFIX}"):
            if not _has_owner(path):
                path.unlink(missing_ok=True)


def _has_owner(path: Path) -> bool:
    """Asked with a socket of another type: one that has an owner refuses the type, and the owner notices nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(str(path)) != errno.ECONNREFUSED


def _parse(endpoint: str) -> tuple[str, str]:
    scheme, _, address = endpoint.partition("://")
    place, _, socket_name = address.partition("/")
    if scheme != "shm" or not place.isalnum() or not socket_name.isalnum():
        raise ValueError(f"not an shm endpoint: {endpoint!r}; one looks like 'shm://2f1e…/9a04…'")
    return place, socket_name
