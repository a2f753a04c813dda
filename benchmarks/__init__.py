"""What the system does on this machine, measured: `python -m benchmarks --help`."""
