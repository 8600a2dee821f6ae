"""Devices and models as figures, and what follows from them: step times, KV capacities, profiles. Pure; no torch."""
