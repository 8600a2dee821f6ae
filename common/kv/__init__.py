"""KV caches as values: what a rank holds (layout), the pass to it (ticket), who owns it in a hand-off (ownership)."""
