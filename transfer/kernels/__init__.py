"""Pack and unpack: between paged cache and staging memory."""
