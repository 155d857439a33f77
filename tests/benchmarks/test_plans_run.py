"""The benchmarks' rows name the plan that ran, also where another of its kind was made later."""

import torch

from benchmarks.gpu import plans_run
from pdssm_compiler import pd_scan
from tests.public.scans import Case, Draw, inputs

CASES = (Case(6, "dictionary", map_class="permutation"), Case(6, "dictionary"), Case(6, "none"))


def test_the_plan_of_the_call_comes_first() -> None:
    for _ in range(2):
        for case in CASES:
            tensors = inputs(case, Draw(1, 3, 2, "permutation", "disk", 0))
            leaves = [tensors[name].requires_grad_() for name in ("diagonal", "drive")]
            with plans_run() as ran:
                states, _ = pd_scan(**tensors, **case.options)
            forward, *helpers = ran
            names = {input_.name for input_ in forward.program.inputs}
            assert names == set(tensors)
            assert forward.program.direction == "forward"
            assert len(helpers) == (case.map_class == "permutation")
            with plans_run() as ran:
                torch.autograd.grad(states, leaves, torch.ones_like(states))
            (backward,) = ran
            assert backward.program.direction == "backward"
            # The general case's dictionary makes no promise, the other's does.
            if case.source == "dictionary":
                types = {i.name: i.type for i in backward.program.inputs}
                assert types["dictionary"].map_class == case.map_class
