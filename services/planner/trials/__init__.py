"""Plans tried in the simulator."""
