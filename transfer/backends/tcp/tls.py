"""TLS without a socket, so that the event loop and threads can use the same session one after the other."""

import ssl
from pathlib import Path

import msgspec

from transfer.errors import PeerLost


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files. Every bearer of a certificate from `ca` is let in, whatever name is in it: the mesh's own CA."""

    certificate: Path
    """With its chain, if any."""
    key: Path
    """Not encrypted."""
    ca: Path


class TlsIdentity:
    """What one side proves who it is with, and what it asks of the other. TLS 1.3, both sides show a certificate."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ValueError for files that cannot be used."""
        self._server = _context(ssl.PROTOCOL_TLS_SERVER, files)
        self._server.num_tickets = 0  # each connection proves itself anew
        self._client = _context(ssl.PROTOCOL_TLS_CLIENT, files)

    def session(self, *, is_server: bool) -> "TlsSession":
        """A new session."""
        return TlsSession(self._server if is_server else self._client, is_server=is_server)


class TlsSession:
    """One connection's state: what came is fed in, what must go is taken out. Every failure is PeerLost.

    One reads while another writes, but what `seal` returned must leave before what it returns next.
    """

    def __init__(self, context: ssl.SSLContext, *, is_server: bool) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)

    def feed(self, data: bytes | memoryview) -> None:
        """Bytes that have come from the peer."""
        self._incoming.write(data)

    def shake(self) -> tuple[bool, bytes]:
        """Whether the handshake is done, and what must be sent for it."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        except ssl.SSLError as error:
            raise PeerLost(f"no TLS with this peer, check certificates and CA on both sides: {error}") from error
        return True, self._outgoing.read()

    def open_into(self, target: memoryview) -> int:
        """Bytes now in `target`; 0 until more is fed. `target` is not empty."""
        try:
            count = int(self._object.read(len(target), target))
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            raise PeerLost(f"the TLS connection ended: {error}") from error
        if count == 0:
            raise PeerLost("the TLS connection was closed by the other side")
        return count

    def seal(self, data: bytes | memoryview) -> bytes:
        """What to send for `data`."""
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            raise PeerLost(f"the TLS connection ended: {error}") from error
        return self._outgoing.read()


def _context(protocol: "ssl._SSLMethod", files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(files.ca)
        # A password would be asked for on the terminal; an empty one fails instead.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:
        raise ValueError(f"{files!r} cannot be used for TLS: {error}") from error
    return context
