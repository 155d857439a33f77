"""Measured candidates, shipped with the package: ``<gpu>/<program>.jsonl``."""
