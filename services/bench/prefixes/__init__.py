"""What the prefix cache is worth: one slice of a trace with recurring beginnings, with the cache and without."""
