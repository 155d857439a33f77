"""The tuner: candidates compiled, checked, timed, written to a log, and found again by calls."""
