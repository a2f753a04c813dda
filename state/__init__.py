"""What outlives a task: keyed state, timers, snapshots, and the store of checkpoints."""
