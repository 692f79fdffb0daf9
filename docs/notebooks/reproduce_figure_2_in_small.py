# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reproduce Figure 2 in small
#
# How fast do the paper's four ways of fine-tuning learn, and where do they end? This takes about a minute on two cores. It works offline and needs `pip install '.[demo,docs]'`.
#
# Figure 2 of the paper shows GTZAN: 1,000 tracks of 30 s in ten genres, a model trained on 16,000 clips, a learning rate of 1e-5. **Small** means here:
#
# - 112 bundled clips, six seconds of each, and the task is to tell seven soundtracks apart;
# - the model is `patchifier-paper`, pre-trained on 3,696 clips, of which some are of other tracks of these soundtracks;
# - 40 steps of 8 clips, with 1e-4 (the head 1e-3), for 1e-5 changes nothing in so few steps;
# - every clip is tested once, over four folds. The paper tests one split and gives no intervals.
#
# So this reproduces the form of the figure. It cannot confirm or refute the paper's ranking.

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from patchifier import cache, checkpoint, datasets
from patchifier.config import update
from patchifier.evaluate.controls import controls
from patchifier.statistics import wilson
from patchifier.train.finetune import METHODS, finetune

DATA = "demo"  # or your own: a manifest with the columns path, target, group and fold
SECONDS = 6.0

# %% [markdown]
# ## The clips
#
# Each clip is decoded once. The cache keeps its log-mel.

# %%
start = checkpoint.load("patchifier-paper")
dataset = datasets.load(DATA)
clips = [replace(clip, end_s=clip.start_s + SECONDS) for clip in dataset.clips]
short = replace(dataset, clips=tuple(clips))
cache.prepare(short, "cache", config=start.config.spectrogram)
print(f"{len(clips)} clips, {len(dataset.task.names)} classes")

# %% [markdown]
# ## Four ways to fine-tune
#
# The model has an extractor, which turns patches into vectors, and a bottleneck, which puts them in context. The linear probe trains neither, only the head.

# %%
changes = {
    "folds": "all",
    "head_learning_rate": 1e-3,
    "validate_every": 8,
    "patience": 1000,
    "precision": "32",
    "training": {"steps": 40, "batch_size": 8, "learning_rate": 1e-4},
}
config = update(start.config, {"finetune": changes})
methods = tuple(METHODS)
tuned = finetune(
    start, "cache", "runs/tuned", methods=methods, config=config, resume=True
)

# %% [markdown]
# Two rows for comparison come without the model: the most frequent class, and a regression on the mean and deviation of each mel band.

# %%
plain = controls(start, "cache", "runs/plain", config=config, random=False)
rows = plain + [result.row for result in tuned]
names = [*(row["encoder"] for row in plain), *METHODS]
for name, row in zip(names, rows, strict=True):
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    print(f"{name:>18}: {row['value']:.1%}, 95 % interval {interval}")

# %% [markdown]
# The intervals are a bootstrap over tracks.
#
# ## The figure
#
# First, the accuracy on the validation clips while a method learns: the mean over the folds, in which each clip validates once. The bands are Wilson's 95 % intervals. They take all clips as independent, so they are too narrow where several are of one track.


# %%
def curve(method):
    """Steps, mean accuracy over the folds, and its interval."""
    files = Path("runs/tuned", method).rglob("validation.csv")  # of each fold
    folds = [np.genfromtxt(file, delimiter=",", names=True) for file in files]
    means = np.mean([fold["accuracy"] for fold in folds], axis=0)
    bounds = [wilson(round(mean * len(clips)), len(clips)) for mean in means]
    return folds[0]["step"], 100 * means, 100 * np.array(bounds)


curves = {method: curve(method) for method in METHODS}
colours = ("#0072B2", "#E69F00", "#009E73", "#D55E00")
looks = zip(METHODS, colours, ("-", "--", "-.", ":"), strict=True)

# %%
shape = {"figsize": (8, 5.4), "sharex": True, "sharey": True, "layout": "constrained"}
figure, axes = plt.subplots(2, 2, **shape)
for panel, (method, colour, dash) in zip(axes.flat, looks, strict=True):
    for other in METHODS:
        panel.plot(*curves[other][:2], color="0.8", lw=1)
    steps, means, bounds = curves[method]
    panel.fill_between(steps, *bounds.T, color=colour, alpha=0.2, lw=0)
    panel.plot(steps, means, dash, color=colour, lw=2)
    panel.axhline(100 * plain[0]["value"], color="0.4", lw=0.8, ls=(0, (1, 3)))
    panel.set_title(method, loc="left", fontsize=10)
figure.supxlabel("steps of 8 clips", fontsize=10)
figure.supylabel("validation accuracy (%)", fontsize=10)
plt.show()

# %% [markdown]
# The dotted line is the most frequent class. Grey are the other methods.
#
# Then the accuracy on the test clips, with the weights that validated best.

# %%
figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
places = np.arange(len(rows))
figures = [(row["value"], row["low"], row["high"]) for row in rows]
values, low, high = 100 * np.array(figures).T
colour_of = ["0.4"] * len(plain) + list(colours)
axes.hlines(places, low, high, color=colour_of, lw=2)
axes.scatter(values, places, color=colour_of, zorder=3)
axes.set(
    yticks=places, yticklabels=names, xlabel="test accuracy (%), with 95 % interval"
)
axes.set_xlim(0)
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## What can be said?

# %%
order = sorted((result.row for result in tuned), key=lambda row: row["value"])
print(f"highest: {order[-1]['method']} {order[-1]['value']:.1%}")
print(f"lowest: {order[0]['method']} {order[0]['value']:.1%}")
overlap = order[0]["high"] >= order[-1]["low"]
print("their intervals overlap" if overlap else "their intervals do not overlap")
print(f"mel statistics, without the model: {plain[1]['value']:.1%}")
print(f"an interval is {np.mean(high - low):.0f} points wide on average")

# %% [markdown]
# In the paper, full fine-tuning and the frozen bottleneck are best, and the linear probe is last and slowest. On the bundled clips each interval is wider than the differences between methods, so a ranking of these rows would be one of chance. `docs/paper.md` has the whole experiment, for those who have the data and a GPU.
