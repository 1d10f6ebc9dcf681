"""Networks: generated layers, stacks of independent networks, the inner loop."""
