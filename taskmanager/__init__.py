"""The data plane: task slots, stepped tasks, operator chains and the exchanges between them."""
