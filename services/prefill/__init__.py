"""The prefill service: computes the KV of [0, split) and holds it for the decode instance that shows the ticket."""
