"""Programs that serve trials with somebody else's engine. Each needs the standard library and that engine only."""
