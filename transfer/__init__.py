"""Moves KV between any two layouts over any transport. Knows no requests and no scheduling; usable on its own."""
