"""What makes a model faster on a CPU without changing what it computes. Optional; torch is its oracle."""
