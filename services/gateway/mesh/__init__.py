"""The mesh half of the gateway: instances join, are asked and are lost; decisions are performed."""
