"""The control plane: ExecutionGraph, checkpoint coordination, failover, clients, command line."""
