"""An instance that spans several devices."""
