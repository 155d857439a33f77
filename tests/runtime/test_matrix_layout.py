"""Matrices as kernels over them read them, and back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.runtime.backends.matrices import laid_out, put_back
from pdssm_compiler.schedules.emit.matrices import Shape

SIZES = st.integers(1, 9)
POWERS = st.sampled_from((1, 2, 4, 8))


@given(SIZES, st.integers(1, 3), POWERS, POWERS, st.booleans(), st.sampled_from(("column", "row")))
def test_every_entry_has_its_place(
    n: int, entries: int, lanes: int, tile: int, tiled: bool, orientation: str
) -> None:
    shape = Shape(n, entries, orientation, 1, lanes, 1, tile, tiled=tiled)
    matrices = torch.randn(2, entries, n, n)
    table = laid_out(matrices, shape, lambda *size, **o: torch.empty(*size, **o).fill_(7))
    assert table.is_contiguous()
    numbers = table.flatten(1)
    assert numbers.shape[1] == shape.numbers
    by_loop = matrices if orientation == "column" else matrices.mT
    row, k, lane = torch.meshgrid(*map(torch.arange, (n, entries, n)), indexing="ij")
    at = row * shape.row_step + k * shape.entry_step
    at += lane // lanes * shape.column_step + lane % lanes
    assert torch.equal(numbers[:, at], by_loop.transpose(1, 2))
    # Zeros behind the ends.
    assert numbers.count_nonzero() == matrices.count_nonzero()
    for parts in (1, 3):
        back = torch.full((2, 2, entries, n, n), float("nan"))
        each = torch.stack([table, 2 * table])
        put_back(torch.stack([each] * parts), shape, back)
        torch.testing.assert_close(back, parts * torch.stack([matrices, 2 * matrices]))
