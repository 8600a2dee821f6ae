"""The placement policies beside each other, in the simulator and on this machine."""
