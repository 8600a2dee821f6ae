"""Names of backends. Nothing is imported before it is asked for."""

from importlib import import_module

from transfer.backends.base import Backend

BACKENDS = {
    "inproc": "transfer.backends.inproc:InprocBackend",
    "tcp": "transfer.backends.tcp:TcpBackend",
}
"""Scheme → "module:Class"."""


def backend_class(scheme: str) -> type[Backend]:
    """The class behind a scheme; raises ValueError for a scheme that is not known."""
    try:
        module, _, name = BACKENDS[scheme].partition(":")
    except KeyError:
        raise ValueError(f"no transfer backend is called {scheme!r}; there are {sorted(BACKENDS)!r}") from None
    found: type[Backend] = getattr(import_module(module), name)
    return found
