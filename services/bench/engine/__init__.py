"""The CPU engine beside what people run on such a machine: the same weights, threads and prompts."""
