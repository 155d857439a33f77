"""Processes of tests that put folders under fire, forked by a server that has imported what they
run, and run nothing, so that a hundred take seconds.

A process of tests has one such server: what it is to import is said once, for all of them.
"""

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.runtime.under_fire", "tests.runtime.tuning.under_fire"])
