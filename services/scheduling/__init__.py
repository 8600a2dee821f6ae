"""Every decision of the mesh, as pure functions and machines: no clock, no socket, no thread, no torch."""
