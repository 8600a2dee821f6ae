"""The life of a request at the gateway: what is heard of it, and what is done about it."""
