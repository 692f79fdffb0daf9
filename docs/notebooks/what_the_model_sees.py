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
# # What the model sees
#
# How well does a masked model draw the missing parts of a song, does it use the order of what it sees, and where does it look? This takes a minute on two cores. It works offline and needs `pip install '.[demo,app,docs]'`.
#
# The model is `patchifier-paper`, the paper's recipe in small. For your own song, change one line in the next cell.

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Audio, Markdown, display

import patchifier
from patchifier import checkpoint, datasets, predictors, statistics
from patchifier.app import inside
from patchifier.datasets.splits import groups_of
from patchifier.filters import mel_edges_hz
from patchifier.nn.attention import attention
from patchifier.train.references import Kriging

clips = datasets.load("demo").clips
SONG = clips[0].path  # or your own: "song.mp3"
model = patchifier.load("patchifier-paper")
settings = model.config.spectrogram

# %% [markdown]
# ## A song as patches
#
# The model reads a log-mel spectrogram: the level of 64 bands of frequency every 23 ms. It is cut into patches of 32 frames. A window has 25 of them.

# %%
shown = inside.excerpt(model, SONG)
N, W = shown.n_patches, shown.patch_frames
width_s = W * shown.frame_s
print(f"{N} patches of {width_s:.3f} s: {shown.start_s:.1f} to {shown.end_s:.1f} s")

# %%
centres_hz = mel_edges_hz(settings)[1:-1]
marks = np.interp((200, 1000, 5000), centres_hz, np.arange(len(centres_hz)))
look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -60, "vmax": 20}


def draw(axes, log_mel, title):
    extent = (shown.start_s, shown.end_s, -0.5, len(log_mel) - 0.5)
    image = axes.imshow(log_mel / settings.db_scale, extent=extent, **look)
    axes.set(yticks=marks, yticklabels=["0.2", "1", "5"], ylabel="kHz")
    axes.set_title(title, loc="left", fontsize=10)
    return image


def hide(axes, patches):
    for start_s in shown.start_s + width_s * np.array(patches):
        axes.axvspan(start_s, start_s + width_s, color="#d4d4d4", lw=0)


figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
image = draw(axes, shown.log_mel, "the window; white lines are the edges of patches")
axes.vlines(shown.start_s + width_s * np.arange(1, N), -0.5, 63.5, color="w", lw=0.6)
axes.set_xlabel("time (s)")
figure.colorbar(image, label="level (dB)", extend="both")
plt.show()

# %% [markdown]
# ## Masking and drawing
#
# Three of four patches are hidden. The model draws them from those that it sees. Beside it stand two predictors that learnt nothing: the mean of the visible patches, and a straight line between the nearest visible ones. Both are constant in time within a patch.

# %%
masked = inside.random_mask(N, 0.75)
drawn = inside.reconstruct(model, shown, masked)
mask = np.isin(np.arange(N), masked)


def to_patches(log_mel):
    return log_mel.reshape(len(log_mel), -1, W).swapaxes(0, 1)  # (N, M, W)


def to_log_mel(patches):
    return patches.swapaxes(0, 1).reshape(patches.shape[1], -1)  # (M, N W)


original = to_patches(shown.log_mel)
bands = predictors.band_means(original)[None]  # (1, N, M)
references = {
    name: to_log_mel(
        np.where(mask[:, None, None], guess(bands, ~mask[None])[0, ..., None], original)
    )
    for name, guess in predictors.UNTRAINED.items()
}

# %%
figure, axes = plt.subplots(5, figsize=(8, 8.4), sharex=True, layout="constrained")
draw(axes[0], shown.log_mel, "the song")
draw(axes[1], shown.log_mel, f"what the model sees: {N - len(masked)} of {N} patches")
hide(axes[1], masked)
draw(axes[2], drawn.log_mel, "drawn by the model")
draw(axes[3], references["visible_mean"], "mean of the visible patches")
image = draw(axes[4], references["interpolation"], "interpolation between them")
axes[4].set_xlabel("time (s)")
label = "level (dB)"
figure.colorbar(image, ax=axes, label=label, extend="both", shrink=0.5)
plt.show()

# %% [markdown]
# The error on the hidden patches, as the root of the mean square. The shrunk interpolation is the mean of the other two references.

# %%
for predictor, mse in drawn.mse.items():
    print(f"{predictor:>21}: {np.sqrt(mse) / settings.db_scale:4.1f} dB")

# %% [markdown]
# ## One song says little: all bundled clips
#
# Each clip gets one mask. There is one more reference: kriging predicts by the covariances of patches, which it takes from three folds of the clips; it is tested on the fourth. Neither it nor the model was trained on the tracks that it is tested on. Both were trained on other tracks of some of these soundtracks.

# %%
log_mels = [inside.excerpt(model, clip.path).log_mel for clip in clips]
patches = np.stack([to_patches(log_mel) for log_mel in log_mels])  # (B, N, M, W)
masks = np.zeros(patches.shape[:2], bool)
for number, row in enumerate(masks):
    row[list(inside.random_mask(len(row), 0.75, seed=number))] = True

# %%
means = predictors.band_means(patches)  # (B, N, M)
guesses = {name: guess(means, ~masks) for name, guess in predictors.UNTRAINED.items()}
guesses["kriging"] = np.empty_like(means)
for fold in range(4):
    test = np.array([clip.fold == fold for clip in clips])
    kriging = Kriging.fit(means[~test])
    guesses["kriging"][test] = kriging.predict(means[test], ~masks[test])

# %%
pairs = list(zip(log_mels, masks, strict=True))
drawings = np.stack([model.reconstruct(*pair)[1] for pair in pairs])


def error(predicted):
    """MSE of each clip on its hidden patches: (B,)."""
    squares = np.square(predicted - patches).mean((2, 3))
    return (squares * masks).sum(1) / masks.sum(1)


errors = {"model": error(drawings)}
errors |= {name: error(guess[..., None]) for name, guess in guesses.items()}

# %% [markdown]
# The difference from the model is taken clip by clip. Its 95 % interval is a bootstrap over tracks: it says how much the difference depends on which tracks were drawn.

# %%
groups = groups_of(clips)


def mean_of(name):
    return lambda chosen: errors[name][chosen].mean()


def model_minus(other):
    return statistics.paired("mse", groups, mean_of("model"), mean_of(other))


def verdict(score):
    return "more" if score.low > 0 else "less" if score.high < 0 else "not told apart"


differences = {name: model_minus(name) for name in guesses}
lines = [
    "| predictor | its MSE, (dB x 0.01)² | model minus it | 95 % interval | the model errs |",
    "|---" * 5 + "|",
]
for name, score in differences.items():
    interval = f"{score.low:+.4f} to {score.high:+.4f}"
    figures = f"{errors[name].mean():.4f} | {score.value:+.4f} | {interval}"
    lines.append(f"| {name.replace('_', ' ')} | {figures} | {verdict(score)} |")
display(Markdown("\n".join(lines)))

# %%
figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
rows = np.arange(len(differences))
values, low, high = np.array([(s.value, s.low, s.high) for s in differences.values()]).T
axes.axvline(0, color="0.6", lw=1)
axes.hlines(rows, low, high, color="#0072B2", lw=2)
axes.plot(values, rows, "o", color="#0072B2")
axes.set(yticks=rows, yticklabels=[name.replace("_", " ") for name in differences])
axes.set(
    ylim=(3.5, -0.5),
    xlabel="MSE of the model minus that of the predictor, (dB x 0.01)²",
)
axes.set_title("right of 0: the model is worse", loc="left", fontsize=10)
plt.show()

# %% [markdown]
# How much of the change over time within a patch does the model draw?

# %%
ratio = errors["model"].mean() / errors["visible_mean"].mean()
moving = drawings.var(-1)[masks].mean() / patches.var(-1)[masks].mean()
best = min(guesses, key=lambda name: errors[name].mean())
text = f"""**What is seen.** The MSE of the model is {ratio:.2f} times that of the mean of the visible patches,
a predictor without any training. The best predictor is {best.replace("_", " ")}.
Of the variance within hidden patches the model draws {moving:.1%}, and a constant draws none.
So these drawings show the level of each band, and hardly any notes or beats."""
display(Markdown(text))

# %% [markdown]
# ## The order test
#
# If a model uses the order of the visible patches, it draws worse when they change places. Here they do: the hidden patches stay where they are, each visible one moves.

# %%
chance = np.random.default_rng(0)


def shuffled(log_mel, mask):
    order, cycle = np.arange(N), chance.permutation(np.flatnonzero(~mask))
    order[cycle] = np.roll(cycle, 1)
    return to_log_mel(to_patches(log_mel)[order])


given = [(shuffled(log_mel, mask), mask) for log_mel, mask in pairs]
errors["shuffled"] = error(np.stack([model.reconstruct(*pair)[1] for pair in given]))

# %%
order = model_minus("shuffled")
relative = -order.value / errors["model"].mean()
bounds = sorted(-bound / errors["model"].mean() for bound in (order.low, order.high))
beaten = 1 - errors["interpolation"].mean() / errors["visible_mean"].mean()
text = f"""Shuffling raises the MSE by {relative:.2%} [{bounds[0]:.2%}, {bounds[1]:.2%}].
In their own order the model errs: **{verdict(order)}**. There is more to gain from the order:
interpolation needs it, and has an MSE {beaten:.1%} below that of the mean, which does not."""
display(Markdown(text))

# %% [markdown]
# ## Attention over a song
#
# Every layer has four heads. For each patch a head says how much it takes from each patch of the window and from CLS; these weights add up to 1. If all were the same, each would be 1/26.

# %%
network = checkpoint.load("patchifier-paper").model
weights = attention(network, shown.log_mel)  # (L, H, 26, 26)
between = weights[:, :, 1:, 1:].mean(1)  # of patches, mean of heads: (L, N, N)
apart = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
by_distance = np.array([between[:, apart == n].mean(1) for n in range(N)])  # (N, L)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
extent = (shown.start_s, shown.end_s, shown.end_s, shown.start_s)
for panel, layer in zip(axes, (0, 7), strict=False):
    look = {"cmap": "cividis", "vmin": 0, "vmax": between.max(), "aspect": "auto"}
    image = panel.imshow(between[layer], extent=extent, **look)
    panel.set_title(f"layer {layer + 1}, mean of heads", loc="left", fontsize=10)
    panel.set(xlabel="takes from (s)", ylabel="patch at (s)")
figure.colorbar(image, ax=axes[1], label="weight (no unit)")
lines = ((0, "#0072B2", "-"), (3, "#E69F00", "--"), (7, "#009E73", ":"))
for layer, colour, dash in lines:
    times_s, label = width_s * np.arange(N), f"layer {layer + 1}"
    axes[2].plot(times_s, by_distance[:, layer], dash, color=colour, label=label)
axes[2].axhline(1 / 26, color="0.6", lw=1, label="1/26")
axes[2].set(xlabel="distance in time (s)", ylabel="mean weight (no unit)")
axes[2].set_ylim(0, 2 / 26)
axes[2].legend(frameon=False, fontsize=8, ncols=2)
plt.show()

# %%
ratio = by_distance[1].mean() / by_distance[10:].mean()
text = f"""A neighbour gets {ratio:.2f} times the weight of a patch that is ten or more places away
(mean of layers and heads). Near 1, a patch does not look at its neighbours more than elsewhere.
Upright stripes are patches from which all others take much, wherever they are."""
display(Markdown(text))

# %% [markdown]
# ## And back to sound
#
# A log-mel has no phases, so a rough inversion (Griffin-Lim) finds some. First the inversion of the true log-mel: what is lost there is not the model's fault. Then with hidden patches drawn by the model, and by the mean.

# %%
sounds = {
    "the true log-mel": shown.log_mel,
    "drawn by the model": drawn.log_mel,
    "mean of the visible patches": references["visible_mean"],
}
for title, log_mel in sounds.items():
    samples, rate = inside.sound(model, log_mel[:, : 10 * W])
    text = f"{title}, the first {10 * width_s:.1f} s"
    display(Markdown(text), Audio(samples, rate=rate))

# %% [markdown]
# More: `patchifier app` draws any song like this, and `docs/experiments/39-order-of-patches.md` and `42-muon.md` say how this model came to use the order.
