"""Keeps a real job under fire; ``python -m tests.chaos --minutes N``."""
