"""From a model's name to a loaded model: `prepare` fills the cache once, `load` reads a folder in seconds."""
