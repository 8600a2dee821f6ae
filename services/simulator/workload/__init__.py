"""Request streams: which lengths come when. Traces read from files, a synthetic one, arrivals at any rate."""
