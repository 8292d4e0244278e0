"""The picture of the landing page; what stands between the marks is the code of that page."""

# code
import torch

import isthmus as im

digits = im.data.load("digits").flat()
x, y = digits.x_train, digits.y_train


def trained(seed: int) -> torch.nn.Module:
    network = im.models.seeded(lambda: im.models.mlp([64, 40, 40, 10]), seed)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


a, b = trained(0), trained(1)
objective = im.Objective(a, "cross_entropy", (x, y))
path = im.connect(objective, a, b, im.Subnetwork())
print(im.verdict(im.profile(objective, path), im.certify(objective, path)))
# end

if __name__ == "__main__":
    from pathlib import Path

    from matplotlib import pyplot

    grey = "#808080"  # to be read on white and on black
    pyplot.rcParams.update({"text.color": grey, "axes.labelcolor": grey, "xtick.color": grey, "ytick.color": grey})
    pyplot.rcParams.update(
        {"axes.edgecolor": grey, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    straight = im.profile(objective, im.connect(objective, a, b))
    found = im.profile(objective, path)
    for profile, name, colour in ((straight, "straight line", "#d1495b"), (found, "Subnetwork: proved", "#2a9d8f")):
        axes.semilogy(profile.t, profile.loss, label=name, color=colour, linewidth=2)
    axes.set(xlabel="t, along the path from a to b", ylabel="training loss")
    axes.legend(frameon=False, loc="lower center")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=160, transparent=True)
    print(f"straight line {straight.max:.4g}, Subnetwork {found.max:.4g}")
