"""A Hugging Face model over paged KV."""
