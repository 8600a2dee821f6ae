"""What the public routes do: the completions, /v1/models, the probes and /openapi.json."""
