"""State tracking: the published tasks, a table by one command; see docs/state-tracking.md."""
