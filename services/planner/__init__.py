"""Plans for a mesh from what its instances are measured to do: profiles first."""
