"""What an instance, an option and a plan can do, without simulating. Pure."""
