"""``inpaint`` and the replacement method: known pixels, seeds, batches, and what is refused."""

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.data import ImageSource, to_float
from aid_control.images.guidance import Guidance
from aid_control.images.masks import make_mask
from aid_control.images.methods.replacement import replacement
from aid_control.images.metrics import psnr
from aid_control.images.sampler import edm_sampler
from aid_control.noise import per_image_normal


@pytest.fixture(scope="module")
def net():
    return load_backbone()


@pytest.fixture(scope="module")
def faces():
    from aid_control.images.backbones.registry import asset

    return to_float(ImageSource(asset("faces"), 64).stack())


@pytest.fixture(scope="module")
def box(faces):
    return make_mask("box", 64, 0).expand(len(faces), 1, 64, 64)


METHODS = {
    "pretrained": lambda net, *a, **k: inpaint(net, None, *a, **k),
    "aid": lambda net, *a, **k: inpaint(net, load_guidance(), *a, **k),
    "replacement": replacement,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_known_pixels_are_exact_and_the_batch_does_not_matter(net, faces, box, name, solver):
    method = METHODS[name]
    whole = method(net, faces[:3], box[:3], steps=6, solver=solver, seeds=[5, 6, 7])
    assert torch.equal(whole * box[:3], faces[:3] * box[:3]) and torch.isfinite(whole).all()
    single = method(net, faces[1:2], box[1:2], steps=6, solver=solver, seeds=[6])
    # the same numbers up to the rounding of convolutions, whose kernels depend on the batch's size
    assert (whole[1:2] - single).abs().max() < 1e-4
    other = method(net, faces[1:2], box[1:2], steps=6, solver=solver, seeds=[8])
    assert (other - single).abs().max() > 0.1


def test_what_the_hole_holds_does_not_matter(net, faces, box):
    y = torch.where(box[:1].bool(), faces[:1], torch.nan)
    kw = dict(steps=2, seeds=[0])
    assert torch.equal(inpaint(net, load_guidance(), y, box[:1], **kw), METHODS["aid"](net, faces[:1], box[:1], **kw))


def test_an_all_hole_mask_is_generation(net, faces):
    """Unguided and without a known pixel it is EDM's own sampler (below seven steps, a stabilised form of it)."""
    hole = torch.zeros(2, 1, 64, 64)
    got = inpaint(net, None, faces[:2], hole, steps=7, seeds=[1, 2])
    want = edm_sampler(net, per_image_normal([1, 2], (3, 64, 64)), num_steps=7)
    assert (got - want).abs().max() < 1e-3


def test_untrained_guidance_is_the_pretrained_flow(net, faces, box):
    kw = dict(steps=3, seeds=[0])
    assert torch.equal(
        inpaint(net, Guidance(64), faces[:1], box[:1], **kw), inpaint(net, None, faces[:1], box[:1], **kw)
    )


def test_aid_beats_the_pretrained_flow_on_the_bundled_images(net, faces, box):
    """Not a benchmark (one portrait, five synthetic faces): guards against shipping broken weights."""
    aid, flow = (
        psnr(METHODS[m](net, faces, box, steps=10, solver="euler"), faces, 1 - box).mean().item()
        for m in ("aid", "pretrained")
    )
    assert aid > flow + 3, (aid, flow)


def test_bad_input_is_refused(net, faces, box):
    y, m = faces[:1], box[:1]
    nan = y.clone()
    nan[0, 0, 0, 0] = torch.nan
    grey = m.clone()
    grey[0, 0, 0, 0] = 0.5
    foreign = Guidance(64)
    foreign.backbone = "0123456789abcdef"
    cases = [
        ((None, y[..., :32], m), {}, "expected"),
        ((None, y[:, :1], m), {}, "expected"),
        ((None, y, m[..., :32]), {}, "mask"),
        ((None, y, grey), {}, "0.5"),
        ((None, y, torch.ones_like(m)), {}, "known"),
        ((None, nan, m), {}, "NaN"),
        ((foreign, y, m), {}, "trained for"),
        ((None, y, m), {"solver": "rk45"}, "euler or heun"),
        ((None, y, m), {"steps": 0}, "at least 1"),
        ((None, y, m), {"seeds": [1, 2]}, "one an image"),
    ]
    for args, options, words in cases:
        with pytest.raises(InputError, match=words):
            inpaint(net, *args, **options)


def test_heun_steps_by_euler_where_the_noise_falls_steeply():
    """Five Karras steps fall by 85 from the third to the fourth level: Heun's second slope there would be noise."""
    from aid_control.images.inpaint import function_evaluations

    net = load_backbone()
    assert [function_evaluations(k, "heun", net) for k in (1, 2, 5, 7, 18)] == [1, 2, 8, 13, 35]
    assert [function_evaluations(k, "euler", net) for k in (1, 5, 18)] == [1, 5, 18]
    calls = []
    net.register_forward_hook(lambda *args: calls.append(1))
    y = torch.zeros(1, 3, 64, 64)
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 20:44] = 0
    for steps in (2, 5, 7):
        calls.clear()
        inpaint(net, None, y, mask, steps=steps)
        assert len(calls) == function_evaluations(steps, "heun", net)
