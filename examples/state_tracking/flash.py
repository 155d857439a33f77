"""Flash PD-SSM as a block of the tables: a language model's, or what is left by maps alone."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pdssm_compiler.nn import Block, FlashPDSSM, LayerCache
from pdssm_compiler.nn.initialise import inverse_softplus, log_uniform_, permutation_logits_

if TYPE_CHECKING:
    from examples.state_tracking.models import Sizes

# Of the selector's logits: by how much the map of a symbol's own stands above others.
_APART = 8.0


def flash_block(sizes: "Sizes") -> nn.Module:
    """A block with one head, so that a state is as large as the other models'. Maps that were not
    chosen learn as well: by the active surrogate it does not learn to carry a state.
    """
    steady = sizes.drive == 0
    mixer = FlashPDSSM(
        sizes.width,
        heads=1,
        state_size=sizes.width,
        dictionary_size=sizes.dictionary,
        conv_width=1 if steady else 4,
        surrogate="dense",
    )
    with torch.no_grad():
        if sizes.margin > 0:
            permutation_logits_(mixer.dictionary_logits, sizes.margin, sizes.margin / 10)
        if sizes.loss > 0:
            diagonal = mixer.diagonal
            diagonal.a_log.zero_()
            losses = torch.empty_like(diagonal.delta_bias)
            log_uniform_(losses, sizes.loss / 1000, sizes.loss)
            diagonal.delta_bias.copy_(inverse_softplus(-torch.log1p(-losses)))
    return SteadyFlash(mixer) if steady else Block(mixer, 2 * sizes.width)


class SteadyFlash(nn.Module):
    """A mixer by maps alone: without drive and phases, of sequences that begin with a one in
    component 0, so that all that a state holds is where maps have carried it.

    What it reads of the symbols does not learn: which map each has, and by what each component is
    multiplied in the read-out, the same for all symbols. So answers follow from where the one is,
    and the dictionary is all that can lead it there. Where that learned as well, modular
    arithmetic fell back to chance, and where answers could be told from the last token (by a skip,
    or by the block's residual), symbols that led to one component were told apart by that, and
    stayed there.

    There is no MLP: the gradient of a map's entry is what a read-out would gain if a little of the
    one were elsewhere too, which tells of a one that is elsewhere only as far as the read-out is
    linear.
    """

    def __init__(self, mixer: FlashPDSSM) -> None:
        super().__init__()
        self.token_norm = nn.RMSNorm(mixer.d_model, elementwise_affine=False)
        self.mixer = mixer
        self.norm = nn.RMSNorm(mixer.d_model)
        for part in (mixer.in_proj, mixer.conv, mixer.token_proj):
            part.requires_grad_(False)
        mixer.skip.requires_grad_(False).zero_()

    @torch.no_grad()
    def read_symbols(self, vectors: torch.Tensor) -> None:
        """Give each symbol a map of its own, as far as there are some, and read all alike.

        Args:
            vectors: of the symbols, ``[V, width]``, which stay what they are. Where there are more
                symbols than the width, as nearly as can be.
        """
        mixer, d = self.mixer, self.mixer.d_inner
        x = self.token_norm(vectors)
        # A row of weights whose product with each symbol's vector is 1.
        mixer.in_proj.weight[d:] = torch.linalg.pinv(x).sum(1)
        tokens = mixer.in_proj(x).chunk(2, -1)[0]
        u = mixer.conv.activated(tokens.unsqueeze(1), None)[0].squeeze(1)
        # The projection's rows are drive, read-out (pairs), magnitude, phase and selector.
        rows = mixer.token_proj.weight.zero_()
        rows[2 * d : 4 * d : 2] = torch.linalg.pinv(u).sum(1)
        own = u[: mixer.dictionary_size]
        rows[6 * d : 6 * d + len(own)] = _APART * torch.linalg.pinv(own).T

    def forward(self, x: torch.Tensor, **options: Any) -> Any:
        """As of :class:`~pdssm_compiler.nn.FlashPDSSM`."""
        state = x.new_zeros((len(x), 1, self.mixer.state_size, 2))
        state[..., 0, 0] = 1
        start = LayerCache(state, self.mixer.conv.empty_window(len(x)))
        mixed = self.mixer(self.token_norm(x), cache=start, **options)
        if isinstance(mixed, tuple):
            return self.norm(mixed[0]), mixed[1]
        return self.norm(mixed)
