"""The decode service: takes KV over, computes what is left of the prompt, samples, and decodes to the end."""
