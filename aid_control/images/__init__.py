"""Image backbones (EDM, EDM2, exact models) as the frozen drift of a control problem, and AID guidance for inpainting.

Images are float tensors (B, C, H, W) in [-1, 1]; masks are (B, 1, H, W) with 1 = known, 0 = hole.  The names of the
package itself are all that filling holes takes: `load_backbone`, `load_guidance`, `inpaint`.
"""

from .backbones.registry import load_backbone
from .guidance import load_guidance
from .inpaint import inpaint

__all__ = ["inpaint", "load_backbone", "load_guidance"]
