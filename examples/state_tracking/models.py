"""The models of the tables: an embedding, blocks, and scores of answers at every token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from examples.state_tracking.flash import SteadyFlash, flash_block
from pdssm_compiler import pd_scan
from pdssm_compiler.nn import PDSSM
from pdssm_compiler.nn.initialise import log_uniform_, permutation_logits_


@dataclass(frozen=True)
class Sizes:
    """What a model is made with; the published ones by default.

    Attributes:
        width: of a token.
        state: ``N``, complex numbers of a state.
        dictionary: ``K``, maps.
        layers: blocks.
        dropout: of the states before the read-out.
        noise: Gumbel noise on the matrices that maps are chosen by, of ``pdssm`` in training.
        margin: by how much the chosen entries of the dictionary stand above others at first; 0
            for the layer's own.
        apart: by how much the weight of a map of its own, as far as there are some, stands above
            others for each symbol at first, in logits, of ``pdssm``'s first layer; 0 for the
            layer's own weights.
        turns: what phases turn by at first, at most, of ``pdssm``; 0 for the layer's own. A phase
            that is not quite 0 adds up over a sequence.
        loss: what a component loses at a token, ``1 - |D|``, at first, at most, of ``pdssm`` and
            ``flash``; 0 for the layer's own.
        drive: by how much the drive is larger at first than the layer's own, of ``pdssm``; 0 for
            none, for good, of ``flash`` too: then all that a state holds is where its one has been
            carried; of ``flash`` see :class:`~examples.state_tracking.flash.SteadyFlash`.
        skip: by how much the token's part in ``pdssm``'s read-out is larger at first than the
            layer's own; 0 for none, for good: then answers follow from states alone.
    """

    width: int = 128
    state: int = 128
    dictionary: int = 8
    layers: int = 2
    dropout: float = 0.01
    noise: float = 0.0
    margin: float = 0.0
    apart: float = 0.0
    turns: float = 0.0
    loss: float = 0.0
    drive: float = 1.0
    skip: float = 1.0


class DiagonalSSM(PDSSM):
    """The ablation: the published block with identities for its maps, a complex diagonal SSM."""

    NO_DECAY = frozenset({"skip"})

    def __init__(self, width: int, *, state_size: int, dropout: float) -> None:
        super().__init__(width, state_size=state_size, dictionary_size=1, dropout=dropout)
        del self.dictionary_logits, self.selector, self.temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """``[B, T, width]``."""
        diagonal = self.diagonal(x).unsqueeze(2)
        drive = self.drive_proj(x).unflatten(-1, (1, self.state_size, 2))
        start = self.init_cache(len(x)).state
        return self._read(x, pd_scan(diagonal, drive, initial_state=start)[0])


class Lstm(nn.Module):
    """A layer of an LSTM, which reads in order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.LSTM(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, T, width]``."""
        out: torch.Tensor = self.cell(x)[0]
        return out


class _Silent(nn.Linear):
    """One whose weights are 0 for good, so that what it reads has no gradient by it: none is
    computed.

    Args:
        given: whose weights it takes.
    """

    def __init__(self, given: nn.Linear) -> None:
        # Without numbers of its own: drawing some would change all that are drawn after it.
        super().__init__(given.in_features, given.out_features, bias=False, device="meta")
        self.weight = given.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., given.in_features]``."""
        return super().forward(x.detach())


def _pdssm(sizes: Sizes) -> nn.Module:
    block = PDSSM(
        sizes.width,
        state_size=sizes.state,
        dictionary_size=sizes.dictionary,
        dropout=sizes.dropout,
        noise=sizes.noise,
    )
    with torch.no_grad():
        if sizes.margin > 0:
            permutation_logits_(block.dictionary_logits, sizes.margin, sizes.margin / 10)
        if sizes.drive == 0:
            block.drive_proj = _Silent(block.drive_proj)
        block.drive_proj.weight.mul_(sizes.drive)
        block.skip.mul_(sizes.skip).requires_grad_(sizes.skip != 0)
        diagonal = block.diagonal
        for most, least, mlp, sign in (
            (sizes.turns, sizes.turns / 10, diagonal.phase, 1),
            (sizes.loss, sizes.loss / 1000, diagonal.magnitude, -1),
        ):
            if most > 0:
                bias = mlp.last.bias
                bias.copy_(sign * torch.logit(log_uniform_(torch.empty_like(bias), least, most)))
    return block


BLOCKS: dict[str, Callable[[Sizes], nn.Module]] = {
    "pdssm": _pdssm,
    "flash": flash_block,
    "diagonal": lambda sizes: DiagonalSSM(
        sizes.width, state_size=sizes.state, dropout=sizes.dropout
    ),
    "lstm": lambda sizes: Lstm(sizes.width),
}


class Tracker(nn.Module):
    """A model that reads a task.

    Args:
        kind: one of :data:`BLOCKS`.
        vocabulary: symbols, answers and padding together.
        sizes: see :class:`Sizes`.
        symbols: numbers of symbols and padding, which are the first of the vocabulary; None for
            all of it.

    Raises:
        ValueError: there is no such kind.
    """

    def __init__(
        self, kind: str, vocabulary: int, sizes: Sizes, symbols: int | None = None
    ) -> None:
        super().__init__()
        if kind not in BLOCKS:
            raise ValueError(f"there is no model {kind!r}; there are {', '.join(BLOCKS)}")
        self.embedding = nn.Embedding(vocabulary, sizes.width)
        self.symbols = vocabulary if symbols is None else symbols
        self.blocks = nn.ModuleList(BLOCKS[kind](sizes) for _ in range(sizes.layers))
        self.head = nn.Linear(sizes.width, vocabulary)
        block, vectors = self.blocks[0], self.embedding.weight[: self.symbols]
        if isinstance(block, SteadyFlash):
            self.embedding.requires_grad_(False)
            block.read_symbols(vectors)
        elif sizes.apart > 0 and type(block) is PDSSM:
            with torch.no_grad():
                # The first map is the identity: padding's, since a symbol that begins by moving
                # nothing is slow to learn that it should. Its row's product with its own vector is
                # ``apart``, with others' 0.
                own = vectors[: sizes.dictionary]
                block.selector.weight[: len(own)] = sizes.apart * torch.linalg.pinv(own).T

    def forward(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor,
        blocks: Iterable[Callable[..., torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """Scores of the answers after the last token.

        Args:
            tokens: int64 ``[B, T]``.
            lengths: int64 ``[B]``.
            blocks: what does the blocks' work, compiled say; None for the blocks themselves.

        Returns:
            ``[B, vocabulary]``.
        """
        first, *others = self.blocks if blocks is None else blocks
        if type(self.blocks[0]) is PDSSM:
            # What comes before its scan is computed of few symbols instead of many tokens.
            x = first(self.embedding.weight[: self.symbols], symbols=tokens)
        else:
            x = first(self.embedding(tokens))
        for block in others:
            x = block(x)
        last = (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1])
        scores: torch.Tensor = self.head(x.gather(1, last).squeeze(1))
        return scores
