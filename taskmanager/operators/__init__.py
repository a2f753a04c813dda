"""How each operator spec of the graph is executed."""
