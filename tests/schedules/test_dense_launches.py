"""A launch that is told that tensors are contiguous hands the driver what one that looks does."""

import pytest
from hypothesis import strategies as st

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStep, CudaStepConfig
from tests.kernels import few
from tests.schedules.cuda import active_adjoint, launches, lowered, tensors_for

FORWARD = pd_scan(PdScan(8, 4, initial_state=True, final_state=True))
BACKWARD = active_adjoint(8, 4, "c64", "column")
SOURCES = [
    lowered(CudaRows(), FORWARD, config=CudaRowsConfig(2, 3)),
    lowered(CudaRows(), pd_scan(PdScan(5, None, "c128", "token")), config=CudaRowsConfig(2, 3)),
    lowered(CudaStep(), FORWARD, config=CudaStepConfig(2)),
    lowered(CudaChunks(), FORWARD, config=CudaChunksConfig(2, 4, 3)),
    # What sums by an index is handed other tensors than the caller's.
    lowered(CudaChunks(), BACKWARD, config=CudaChunksConfig(2, 4, 3)),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: f"{s.template}-{s.program.fingerprint}")
@few(10, sizes=st.builds(Sizes, st.integers(0, 3), st.integers(1, 40), st.integers(0, 3)))
def test_the_same_is_handed_over(source: KernelSource, sizes: Sizes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tensors = tensors_for(source, sizes)
        looked = launches(patch, source, tensors, sizes)
        told = launches(patch, source, tensors, sizes, dense=True)
    assert len(told) == len(looked) == int(sizes.batch * sizes.heads > 0)
    # Scratch and a team's own sums are where the allocator puts them.
    new = {f"{each.name}_ptr" for each in source.scratch}
    if source.template == "cuda-chunks":
        new |= {f"{total.name}_ptr" for total in source.signature.sum_outputs}
    for one, other in zip(looked, told, strict=True):
        assert {n: v for n, v in one.items() if n not in new} == {
            n: v for n, v in other.items() if n not in new
        }
