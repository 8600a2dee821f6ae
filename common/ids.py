"""Identities. One NewType each, so that the type checker tells a request from an instance."""

from typing import NewType

RequestId = NewType("RequestId", str)
"""One client request, minted by the gateway."""

InstanceId = NewType("InstanceId", str)
"""One engine of the mesh, named in mesh.yaml; the name survives restarts."""

Generation = NewType("Generation", int)
"""One life of an instance: a random 63-bit number drawn at start and whenever the instance joins anew."""

TransferId = NewType("TransferId", str)
"""One hand-off of KV from a prefill to a decode instance."""

MeasureId = NewType("MeasureId", str)
"""One measurement of a step, minted by the gateway."""
