"""TCP: one control connection on the event loop, and data connections whose bytes threads move."""

from transfer.backends.tcp.backend import TcpBackend
from transfer.backends.tcp.link import Striping
from transfer.backends.tcp.tls import TlsFiles

__all__ = ["Striping", "TcpBackend", "TlsFiles"]
