"""Everything that runs: decisions (scheduling), the engine, text, the three services, and what starts them."""
