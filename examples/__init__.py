"""Short programs to start from; README.md lists them."""
