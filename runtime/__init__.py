"""The runtime: compiling, caching, checking and calling kernels from PyTorch."""
