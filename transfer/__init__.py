"""Moves KV between instances over any transport. Knows no requests and no scheduling; usable on its own."""
