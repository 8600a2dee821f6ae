"""The control plane: typed messages over ZeroMQ, and the worker's membership in the mesh."""
