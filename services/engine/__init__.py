"""One model on one device: paged KV cache, continuous batching, sampling. `api` is what services see of it."""
