"""Other systems, each in a virtual environment of its own, doing the same work."""
