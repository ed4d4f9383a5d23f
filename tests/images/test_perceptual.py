"""LPIPS: the published numbers' properties, and files that are no features."""

from pathlib import Path

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images.perceptual import Lpips

pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")
FEATURES = Path(__file__).resolve().parents[3] / "shared" / "weights" / "alexnet_features.pth"


@pytest.fixture(scope="module")
def distance():
    if not FEATURES.is_file():
        pytest.skip("AlexNet features are not on this machine")
    return Lpips(FEATURES)


def test_zero_for_equal_images_and_more_for_more_noise(distance):
    rng = torch.Generator().manual_seed(0)
    image, noise = torch.rand(2, 3, 64, 64, generator=rng) - 0.5, torch.randn(2, 3, 64, 64, generator=rng)
    assert distance(image, image).tolist() == [0, 0]
    small, large = distance(image, image + 0.05 * noise), distance(image, image + 0.3 * noise)
    assert (small > 0).all() and (2 * small < large).all()


def test_a_region_sees_its_own_part(distance):
    rng = torch.Generator().manual_seed(1)
    a = torch.rand(1, 3, 64, 64, generator=rng) * 2 - 1
    b = a.clone()
    b[..., :20] = torch.rand(1, 3, 64, 20, generator=rng) * 2 - 1
    left = torch.zeros(1, 1, 64, 64)
    left[..., :20] = 1
    assert float(distance(a, b, left)) > 5 * float(distance(a, b, 1 - left))
    torch.testing.assert_close(distance(a, b, torch.ones(1, 1, 64, 64)), distance(a, b), rtol=0.2, atol=0.02)
    assert torch.isnan(distance(a, b, torch.zeros(1, 1, 64, 64))).all()


def test_differentiable(distance):
    a = torch.rand(1, 3, 64, 64, requires_grad=True)
    distance(a, torch.zeros(1, 3, 64, 64)).sum().backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 0


def test_refuses_other_images(distance):
    with pytest.raises(InputError, match="expected two equal"):
        distance(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))


def test_refuses_files_that_are_no_features(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Lpips(tmp_path / "missing.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "short.pth")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    for name in ("short.pth", "noise.pth"):
        with pytest.raises(InputError, match=name):
            Lpips(tmp_path / name)
