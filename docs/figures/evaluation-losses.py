"""The known case X = W, J = x + theta (T - t) x, truth theta = 0: two losses on the same paths, three step sizes."""

import torch
from style import plt, save

from aid_control.evaluation import martingale_loss, mstde_loss
from aid_control.evaluation.known_case import LineCritic, minimiser, sample
from aid_control.value import Shifted

figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
thetas = torch.linspace(-3.0, 1.5, 46)
losses = {"martingale loss": martingale_loss, "mean-square TD error": mstde_loss}
for axis, (name, loss) in zip(axes, losses.items(), strict=True):
    for steps in (25, 100, 400):
        paths = sample(1.0, 4000, steps, seed=1)
        critic = LineCritic(1.0)
        curve = []
        for theta in thetas:
            with torch.no_grad():
                critic.weights.fill_(float(theta))
                curve.append(float(loss(Shifted(critic), paths)))
        best = minimiser(loss, paths)
        heights = torch.tensor(curve)
        axis.plot(thetas, heights / heights.min(), label=f"{steps} steps, minimum at {best:+.3f}")
    axis.axvline(0.0, color="k", lw=1)
    axis.axvline(-1.5, color="C3", ls=":", lw=1)
    axis.set(title=name, xlabel="θ (truth 0; dotted −3/(2T))", ylabel="loss / its minimum", ylim=(0.95, 3.0))
    axis.legend(loc="upper right")
save(figure, __file__)
