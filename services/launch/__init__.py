"""Starts and watches a mesh of local processes: for `pdmesh up`, benchmarks and tests."""
