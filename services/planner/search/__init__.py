"""The best plans of a problem: enumeration, or an integer programme."""
