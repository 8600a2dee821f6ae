"""CURVE keys of the control plane, as files: a folder for each process, with what that process has to know.

    FOLDER/gateway/private.key      the gateway's own, for nobody else to read
    FOLDER/gateway/allowed/ID.pub   the public key of an instance that may join, under this id alone
    FOLDER/ID/private.key           an instance's own, for nobody else to read
    FOLDER/ID/gateway.pub           by which it knows the gateway

Every file is one key, 40 characters of Z85 (ZeroMQ RFC 32).  `common.bus.key_files` makes them.
"""

import logging
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85

from common.errors import ConfigError
from common.ids import InstanceId

_log = logging.getLogger(__name__)

GATEWAY: Final = "gateway"
PRIVATE_FILE: Final = "private.key"
GATEWAY_FILE: Final = "gateway.pub"
ALLOWED: Final = "allowed"
PUBLIC_SUFFIX: Final = ".pub"

_LENGTH: Final = 40
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

PublicKey = bytes
"""40 characters of Z85."""


class SecretKey:
    """A private key, in Z85. It is shown nowhere: not in logs, errors or a debugger's view of what holds it."""

    __slots__ = ("_z85",)

    def __init__(self, z85: bytes) -> None:
        self._z85 = z85

    def reveal(self) -> bytes:
        """The key itself, for ZeroMQ or a file."""
        return self._z85

    def __repr__(self) -> str:
        return "SecretKey(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not copied into anything that leaves this process")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What one process proves itself with."""

    public: PublicKey
    secret: SecretKey


@dataclass(frozen=True, slots=True)
class InstanceKeys:
    """What an instance connects with."""

    own: KeyPair
    gateway: PublicKey


KeyReader = Callable[[], InstanceKeys | None]
"""Reads an instance's keys as they are now; None: the control plane has none. Raises ConfigError."""


def key_reader(folder: str | None, instance: InstanceId) -> KeyReader:
    """Reads `instance`'s keys in `folder`, anew at each call, so that a new key is used from the next connection on."""
    return lambda: None if folder is None else read_instance(Path(folder), instance)


def new_pair() -> KeyPair:
    """A key that nobody else has."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, SecretKey(secret))


def read_gateway(folder: Path) -> KeyPair:
    """The gateway's own key. Raises ConfigError."""
    return _read_private(folder / GATEWAY / PRIVATE_FILE, "pdmesh keys init")


def read_instance(folder: Path, instance: InstanceId) -> InstanceKeys:
    """What `instance` connects with. Raises ConfigError."""
    remedy = f"pdmesh keys init --instance {instance}"
    own = _read_private(folder / instance / PRIVATE_FILE, remedy)
    path = folder / instance / GATEWAY_FILE
    try:
        return InstanceKeys(own, parse_public(path.read_bytes(), path))
    except OSError as error:
        raise _unreadable(path, error, remedy) from error


def read_allowed(folder: Path) -> Mapping[PublicKey, InstanceId]:
    """Whose key each allowed public key is. A file that is no key, or one key for two instances, lets nobody in.

    No such folder: nobody is allowed.  Raises OSError where it cannot be read for now.
    """
    found: dict[PublicKey, InstanceId] = {}
    doubled: set[PublicKey] = set()
    for path in allowed_files(folder):
        try:
            key = parse_public(path.read_bytes(), path)
        except FileNotFoundError:
            continue  # withdrawn at this moment
        except ConfigError as error:
            _log.error("%s: %s cannot join", error, path.stem)
            continue
        if key in found:
            _log.error("%s holds the key of %s as well: neither can join; each needs its own", path, found[key])
            doubled.add(key)
        found[key] = InstanceId(path.stem)
    return {key: instance for key, instance in found.items() if key not in doubled}


def allowed_folder(folder: Path) -> Path:
    """Where the gateway finds the keys of those who may join."""
    return folder / GATEWAY / ALLOWED


def allowed_files(folder: Path) -> list[Path]:
    """The files of allowed keys, by name; the folder may be missing."""
    try:
        paths = list(allowed_folder(folder).iterdir())
    except FileNotFoundError:
        return []
    return sorted(path for path in paths if path.suffix == PUBLIC_SUFFIX)


def parse_public(content: bytes, path: Path) -> PublicKey:
    """The key in a file's content. Raises ConfigError that does not repeat it: it may be a private key by mistake."""
    key = content.strip()
    try:
        if len(key) == _LENGTH and z85.decode(key):
            return key
    except (KeyError, struct.error):
        pass  # a character that Z85 does not have, or five that are more than 32 bits
    raise ConfigError(f"{path} holds no key: one is {_LENGTH} characters on a line; `pdmesh keys init` makes them")


def _read_private(path: Path, remedy: str) -> KeyPair:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(4096)
    except OSError as error:
        raise _unreadable(path, error, remedy) from error
    if mode & _OTHERS:
        raise ConfigError(
            f"others than its owner may use the private key {path} (mode {mode:04o}): run `chmod 600 {path}`, "
            f"or `{remedy}` where somebody may have seen it"
        )
    secret = parse_public(content, path)
    try:
        return KeyPair(zmq.curve_public(secret), SecretKey(secret))
    except zmq.ZMQError as error:
        reason = "this build of ZeroMQ has no CURVE" if error.errno == zmq.ENOTSUP else "it is damaged"
        raise ConfigError(f"the private key {path} cannot be used: {reason}") from None


def _unreadable(path: Path, error: OSError, remedy: str) -> ConfigError:
    return ConfigError(
        f"cannot read the key {path}: {error.strerror}; gateway.control_keys names its folder, and `{remedy}` makes it"
    )
