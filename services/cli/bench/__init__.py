"""`pdmesh bench …`: one file for each benchmark's options and tables."""
