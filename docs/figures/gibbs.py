"""Gibbs policies of two Hamiltonians at three temperatures, by quadrature over actions.

Quadratic: Gaussian, and its mean is the minimiser at every temperature.  With a quartic term: neither.
"""

import torch
from style import plt, save

actions = torch.linspace(-6.0, 6.0, 4801)
width = float(actions[1] - actions[0])
hamiltonians = {
    "H(u) = u + u²/2": actions + actions**2 / 2,
    "H(u) = u + u²/2 + u⁴/4": actions + actions**2 / 2 + actions**4 / 4,
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axis, (name, energy) in zip(axes, hamiltonians.items(), strict=True):
    best = float(actions[energy.argmin()])
    for i, tau in enumerate((0.1, 0.5, 2.0)):
        density = torch.softmax(-energy / tau, dim=0) / width
        mean = float((actions * density).sum() * width)
        axis.plot(actions, density, color=f"C{i}", label=f"τ = {tau:g}, mean {mean:+.3f}")
        axis.axvline(mean, color=f"C{i}", ls=":", lw=1)
    axis.axvline(best, color="k", lw=1, label=f"minimiser {best:+.3f}")
    axis.set(title=name, xlabel="u", xlim=(-4.5, 3.0))
    axis.legend()
axes[0].set_ylabel("Gibbs policy")
save(figure, __file__)
