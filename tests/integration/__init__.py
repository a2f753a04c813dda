"""Whole jobs on a real Ray."""
