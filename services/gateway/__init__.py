"""The OpenAI-compatible door of the mesh: HTTP in, placements out, tokens back. Never imports torch."""
