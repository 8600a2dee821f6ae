"""An engine without weights, whose tokens are read back from the KV cache."""
