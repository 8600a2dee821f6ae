"""What every part of the mesh agrees on: identities, errors, time, configuration, KV layouts, messages, the bus."""
