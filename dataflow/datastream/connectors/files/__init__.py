"""Reading and writing files; the public names are in ``connectors.file_system``."""
