"""What draws of mixtures have in common: labels, allocations, similarity of rows, convergence."""
