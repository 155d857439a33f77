"""Layers: PD-SSM and Flash PD-SSM as ``torch.nn`` modules.

``import pdssm_compiler`` does not import this; ``import pdssm_compiler.nn`` does, and torch with
it.
"""

from pdssm_compiler.nn.attention import AttentionCache, CausalAttention
from pdssm_compiler.nn.block import Block
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.nn.decay import parameter_groups
from pdssm_compiler.nn.flash import FlashPDSSM
from pdssm_compiler.nn.language import CausalLM
from pdssm_compiler.nn.pdssm import PDSSM

__all__ = [
    "PDSSM",
    "AttentionCache",
    "Block",
    "CausalAttention",
    "CausalLM",
    "FlashPDSSM",
    "LayerCache",
    "parameter_groups",
]
