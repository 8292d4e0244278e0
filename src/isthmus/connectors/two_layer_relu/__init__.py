"""Two-layer ReLU networks with an l1 penalty."""
