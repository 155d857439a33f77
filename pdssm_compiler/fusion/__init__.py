"""Fusion: what a user computes around a scan, traced from Python functions into its kernels."""
