"""The bars of the main job on 64 held-out faces (about six minutes on one core)."""

import pytest
import torch

from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.data import ImageSource, to_float
from aid_control.images.masks import make_mask
from aid_control.images.methods.replacement import replacement
from aid_control.images.metrics import psnr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["box", "freeform"])
def test_hole_psnr_against_the_flow_and_replacement(shared, kind):
    net, guidance = load_backbone(), load_guidance()
    x = to_float(ImageSource(shared / "data/celeba10k-64x64-test.zip", 64).stack(range(64)))
    mask = torch.stack([make_mask(kind, 64, i) for i in range(64)])

    def score(method):
        done = [method(x[i : i + 8], mask[i : i + 8], steps=18, seeds=range(i, i + 8)) for i in range(0, 64, 8)]
        return psnr(torch.cat(done), x, 1 - mask).mean().item()

    flow = score(lambda *a, **k: inpaint(net, None, *a, **k))
    replaced = score(lambda *a, **k: replacement(net, *a, **k))
    aid = score(lambda *a, **k: inpaint(net, guidance, *a, **k))
    assert aid >= flow + 3 and aid >= replaced + 1.5, (flow, replaced, aid)
