"""Flash PD-SSM as a block of the tables: a language model's, or what is left by maps alone."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pdssm_compiler.nn import Block, FlashPDSSM, LayerCache
from pdssm_compiler.nn.initialise import inverse_softplus, log_uniform_, permutation_logits_

if TYPE_CHECKING:
    from examples.state_tracking.models import Sizes


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
    return SteadyFlash(mixer, 2 * sizes.width, sizes.skip) if steady else Block(mixer, 2 * sizes.width)


class SteadyFlash(Block):
    """Without drive and phases, for good; sequences begin with a one in component 0. All that a
    state holds is where maps have carried it, and a token's map follows from the token alone.
    """

    def __init__(self, mixer: FlashPDSSM, hidden: int, skip: float) -> None:
        super().__init__(mixer, hidden)
        self.skip = skip
        with torch.no_grad():
            mixer.skip.mul_(skip).requires_grad_(skip != 0)
        d = mixer.d_inner
        # The projection's rows are drive, read-out, magnitude, phase and selector.
        kept = torch.ones(len(mixer.token_proj.weight), 1)
        kept[: 2 * d] = 0
        kept[5 * d : 6 * d] = 0
        self.register_buffer("kept", kept, persistent=False)
        with torch.no_grad():
            mixer.token_proj.weight.mul_(kept)
        mixer.token_proj.weight.register_hook(lambda grad: grad * self.kept)

    @property
    def selector(self) -> torch.Tensor:
        """The rows of the projection that maps are chosen by, ``[K, width]``."""
        return self.mixer.token_proj.weight[-self.mixer.dictionary_size :]

    def read_alike(self, x: torch.Tensor) -> torch.Tensor:
        mixer, d = self.mixer, self.mixer.d_inner
        x = self.mixer_norm(x)
        alike = torch.linalg.pinv(x).sum(1)
        mixer.in_proj.weight[d:] = alike
        tokens = mixer.in_proj(x).chunk(2, -1)[0].unsqueeze(1)
        u = mixer.conv.activated(tokens, None, None)[0].squeeze(1)
        rows = mixer.token_proj.weight[2 * d : 4 * d].unflatten(0, (d, 2))
        rows[:, 0] = torch.linalg.pinv(u).sum(1)
        return u

    def forward(self, x: torch.Tensor, **options: Any) -> Any:
        """As of :class:`~pdssm_compiler.nn.Block`."""
        state = x.new_zeros((len(x), 1, self.mixer.state_size, 2))
        state[..., 0, 0] = 1
        start = LayerCache(state, self.mixer.conv.empty_window(len(x)))
        mixed = self.mixer(self.mixer_norm(x), cache=start, **options)
        return mixed
