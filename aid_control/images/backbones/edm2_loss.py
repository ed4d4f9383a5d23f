r"""EDM2's training loss: every noise level weighs the same, by a learned estimate of its difficulty.

$$
L = E\Big[ \frac{w}{e^{u(\sigma)}}\, \frac{|D(x_0 + \sigma n; \sigma) - x_0|^2}{d} + u(\sigma) \Big],
\qquad w = \frac{\sigma^2 + s^2}{(\sigma s)^2}, \quad
\log\sigma \sim N(P_{\mathrm{mean}}, P_{\mathrm{std}}^2)
$$

(Karras et al. 2024, section 2; $s = \sigma_{\mathrm{data}}$; the uncertainties of Kendall et al. 2018).  For a given
network the best $u$ is the logarithm of the weighted error, so that the first term tends to 1 at every level, and so
does the share of each level in the gradient.  The head is not needed after training.
"""

from __future__ import annotations

from torch import Tensor

from .edm2 import EDM2Precond

__all__ = ["P_MEAN", "P_STD", "edm2_loss"]

P_MEAN, P_STD = -0.4, 1.0  # published for latents of 512x512 images


def edm2_loss(
    net: EDM2Precond, images: Tensor, log_sigma: Tensor, noise: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """The loss of each image, (B,).

    Args:
        net: denoiser with a log-variance head.
        images: clean (B, C, H, W), of standard deviation ``net.sigma_data``.
        log_sigma: (B,), drawn from N(P_MEAN, P_STD^2).
        noise: standard normal like ``images``.
        class_labels: one-hot (B, label_dim) or ``None``.
    """
    sigma = log_sigma.exp()
    weight = (sigma**2 + net.sigma_data**2) / (sigma * net.sigma_data) ** 2
    error = net(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma, class_labels) - images
    u = net.logvar(sigma).reshape(-1)
    return weight / u.exp() * error.square().mean(dim=(1, 2, 3)) + u
