"""Who is in the mesh, who has met whom, and which pairs really answer."""
