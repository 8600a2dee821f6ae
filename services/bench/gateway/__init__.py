"""What the gateway costs: the real one before workers that answer at once, beside a raw handler and Rust routers."""
