"""Plan files in, mesh files out."""
