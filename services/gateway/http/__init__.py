"""HTTP below the API: connections, heads, keys and limits in; JSON and server-sent events out."""
