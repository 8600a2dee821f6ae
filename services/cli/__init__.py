"""The `pdmesh` command."""
