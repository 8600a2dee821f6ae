"""What the gateway's decisions cost."""
