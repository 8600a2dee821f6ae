"""What an engine costs: its steps, its stages, and whole runs of it."""
