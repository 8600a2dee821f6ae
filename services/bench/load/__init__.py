"""A load generator: streams completions of a mesh over HTTP and times every event at the client."""
