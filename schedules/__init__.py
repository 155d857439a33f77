"""Schedules: how a device runs a program. Nothing here names a program."""
