"""Latent diffusion: codecs between pictures and latents, data sets of latents, and inpainting through them.

Latents are float tensors (B, C, h, w), of mean 0 and deviation 1/2 over the data, as EDM2's backbones expect.
"""

from .codec import Codec, StabilityCodec
from .pipeline import inpaint_latent
from .tiny import TinyCodec, load_codec

__all__ = ["Codec", "StabilityCodec", "TinyCodec", "inpaint_latent", "load_codec"]
