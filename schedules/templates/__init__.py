"""Templates: loop skeletons, one a file."""
