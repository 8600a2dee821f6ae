"""The KV cache of an instance: its tensors, its blocks, and what those hold already."""
