"""Emitters: the body of any program as code of a backend."""
