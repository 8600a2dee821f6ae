"""Measures the system beside the bound that physics sets and beside its peers. Every benchmark writes one shape."""
