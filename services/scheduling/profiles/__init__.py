"""What the steps of an instance cost: measured, fitted, and kept true while serving."""
