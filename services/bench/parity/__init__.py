"""P-D = aggregated: every feature of the API, asked with every way to split the prompt, whole and streamed."""
