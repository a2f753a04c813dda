"""The deterministic simulator: the real job, coordinator, store and tasks under a seed."""
