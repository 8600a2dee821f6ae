"""Profiles of running instances."""
