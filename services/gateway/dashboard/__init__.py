"""The page at /dashboard and what it shows."""
