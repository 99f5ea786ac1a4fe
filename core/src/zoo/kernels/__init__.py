"""The ops through which every model computes. Each op has one folder: a plain torch reference and, where written,
faster backends. Models call the typed functions below; which backend answers is chosen once per device.
"""

from zoo.kernels.activate import activate
from zoo.kernels.add import add
from zoo.kernels.attend import attend, attend_latent
from zoo.kernels.embedding import embedding
from zoo.kernels.gate import gate
from zoo.kernels.glu import glu
from zoo.kernels.head_linear import head_linear
from zoo.kernels.layer_norm import layer_norm
from zoo.kernels.linear import linear
from zoo.kernels.moe import moe
from zoo.kernels.position_scale import position_scale
from zoo.kernels.rms_norm import rms_norm
from zoo.kernels.rotary import Rotary, rotary
from zoo.kernels.route import Routing, route
from zoo.kernels.sample import sample
from zoo.kernels.softcap import softcap

__all__ = [
    "Rotary",
    "Routing",
    "activate",
    "add",
    "attend",
    "attend_latent",
    "embedding",
    "gate",
    "glu",
    "head_linear",
    "layer_norm",
    "linear",
    "moe",
    "position_scale",
    "rms_norm",
    "rotary",
    "route",
    "sample",
    "softcap",
]
