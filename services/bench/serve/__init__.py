"""A whole mesh over HTTP beside each of its stages alone, and beside one engine that has all its cores."""
