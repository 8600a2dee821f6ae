"""`pdmesh bench transfer`: how fast KV moves, beside memcpy, one raw TCP connection, and other people's libraries."""
