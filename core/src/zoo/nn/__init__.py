"""Leaves that model files are built from. A block (Attention, MLP, DecoderLayer) stays in the model's own file."""

from zoo.kernels import activate, add, gate, position_scale
from zoo.nn.attention import attend, attend_latent
from zoo.nn.embedding import Embedding, LMHead
from zoo.nn.linear import HeadLinear, Linear, glu, project
from zoo.nn.moe import Experts, Router
from zoo.nn.norm import LayerNorm, RMSNorm
from zoo.nn.rope import RopeParameters, Rotary, RotaryEmbedding

__all__ = [
    "Embedding",
    "Experts",
    "HeadLinear",
    "LMHead",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "RopeParameters",
    "Rotary",
    "RotaryEmbedding",
    "Router",
    "activate",
    "add",
    "attend",
    "attend_latent",
    "gate",
    "glu",
    "position_scale",
    "project",
]
