"""A long sequence in pieces, the state carried on: bounded memory, and the same answer."""

from collections.abc import Iterator

import torch

from pdssm_compiler import pd_scan

H, N = 4, 16


def pieces(lengths: list[int], seed: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
    """Diagonal, drive and destination of each piece, as a stream would bring them."""
    random = torch.Generator().manual_seed(seed)
    for length in lengths:
        shape = (1, length, H, N)
        angle = torch.rand(shape, generator=random) * 2 * torch.pi
        diagonal = torch.polar(torch.rand(shape, generator=random), angle)
        drive = torch.randn(shape, generator=random, dtype=torch.complex64)
        yield diagonal, drive, torch.randint(N, shape, generator=random)


def last_state(stream: Iterator[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """The state after the last piece; no more than one piece is in memory."""
    state = None
    for diagonal, drive, destination in stream:
        _, state = pd_scan(
            diagonal,
            drive,
            destination=destination,
            initial_state=state,
            output_final_state=True,
        )
    return state


def main() -> None:
    """The pieces, and the whole at once."""
    lengths = [1000, 1, 257, 742]
    in_pieces = last_state(pieces(lengths))
    whole = [torch.cat(parts, dim=1) for parts in zip(*pieces(lengths), strict=True)]
    at_once = last_state(iter([tuple(whole)]))
    print(f"equal to the last bit: {torch.equal(in_pieces, at_once)}")


if __name__ == "__main__":
    main()
