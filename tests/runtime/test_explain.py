"""``explain()``: every kernel that ran, with what chose it and where it came from."""

from pathlib import Path

import pytest
import torch

from pdssm_compiler import explain, pd_scan
from pdssm_compiler.runtime import plan, settings
from pdssm_compiler.runtime.plan import Plan


def test_it_says_what_ran_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    tensor = torch.ones(1, 3, 2, 21, dtype=torch.complex64, requires_grad=True)
    for origin, told in (("compiled", "compiled in "), ("disk", "loaded from the disk cache in ")):
        plans: dict[object, Plan] = {}
        monkeypatch.setattr(plan, "_plans", plans)
        assert explain() == []
        states, _ = pd_scan(tensor, tensor)
        (forward,) = explain()
        states.abs().sum().backward()
        assert [kernel.program.splitlines()[0] for kernel in explain()] == [
            "scan N=21 forward",
            "scan N=21 backward",
        ]
        pd_scan(tensor, tensor)  # what is there already is not told again
        assert len(explain()) == 2
        assert forward.device == "cpu"
        assert forward.target.startswith("cpu:")
        assert (forward.template, forward.reason) == ("cpu-rows", "heuristic")
        assert '"max_heads": ' in forward.config
        assert forward.origin == origin
        assert forward.key == next(iter(plans.values())).kernels.built[-1].key
        assert str(forward).startswith(f"scan N=21 forward on cpu ({forward.target}): cpu-rows {{")
        assert f", by heuristic; {told}" in str(forward)
        assert str(forward).endswith(f"; key {forward.key.digest[:12]}")
