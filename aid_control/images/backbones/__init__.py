r"""Backbones: the denoisers that are given, frozen, and steered by everything else of this package.

All are maps $D(x; \sigma)$ from noisy images and a noise level to denoised images: published networks and one of our
own (`registry`, `precond`, `unets`, `edm2`), and models whose denoiser and posteriors are exact (`exact`, `gaussian`,
`mixture`).  Others wrap a denoiser (`wrappers`, `conditional`), or tell how one is trained or fitted (`training`,
`edm2_loss`, `phema`, `em`).
"""
