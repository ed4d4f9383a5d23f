"""LPIPS of five pairs against the original program's numbers, as the package pyiqa publishes them (TID2013 images).

LPIPS_PAIRS names the folder ResultsCalibra of pyiqa's source archive (0.1.16); its images are not redistributed here.
"""

import csv
import os
from pathlib import Path

import pytest
import torch

from aid_control.images.data import read_image, to_float
from aid_control.images.perceptual import Lpips

pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")


def test_the_original_programs_numbers(shared):
    folder = Path(os.environ.get("LPIPS_PAIRS", "absent"))
    if not folder.is_dir():
        pytest.skip("LPIPS_PAIRS names no folder")
    distance = Lpips(shared / "weights/alexnet_features.pth")
    rows = list(csv.reader((folder / "results_official.csv").read_text().splitlines()))
    expected = dict(zip(rows[0][1:], next(row[1:] for row in rows if row[0] == "lpips"), strict=True))
    assert len(expected) == 5
    for name, value in expected.items():
        a, b = (to_float(read_image(folder / kind / name))[None] for kind in ("ref_dir", "dist_dir"))
        assert distance(a, b).item() == pytest.approx(float(value), abs=2e-4), name
        assert distance(a, b, torch.ones(1, 1, *a.shape[2:])).item() == pytest.approx(float(value), abs=2e-4)
