"""What the gateway writes down of its requests: metrics, traces, spans."""
