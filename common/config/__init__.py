"""mesh.yaml: one file for every process, with the environment and flags on top."""
