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
# # Probe vectors on my labels
#
# How much of my labels do the vectors contain, is that more than simple features contain, and how sure is the answer? This takes about a minute on two cores. It works offline and needs `pip install '.[demo,app,docs]'`.
#
# For your own labels, change one line in the next cell: a CSV file with the columns `path` and `target` (one label for each clip), and `group` if several clips are of one track or one artist.

# %%
import csv
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import patchifier
from patchifier import cache, datasets, statistics, tasks
from patchifier.app.teach import teach
from patchifier.datasets.splits import Splits, cross_validation, groups_of
from patchifier.evaluate import probes
from patchifier.evaluate.compare import compare
from patchifier.evaluate.encoders import as_encoder, encoders, random_checkpoint
from patchifier.integrations.sklearn import PatchifierEmbedder

# tqdm's, without ipywidgets
warnings.filterwarnings("ignore", message="IProgress not found")

MANIFEST = None  # or your own: "labels.csv"

# %% [markdown]
# ## A manifest
#
# Without one of yours, this writes one for the bundled clips: which of seven soundtracks is a clip from? Clips of one track are a group, which is never divided between training and test.

# %%
if MANIFEST is None:
    MANIFEST = "labels.csv"
    with open(MANIFEST, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "target", "group", "fold"])
        for clip in datasets.load("demo").clips:
            rows.writerow([clip.path, clip.target, clip.group, clip.fold])

dataset = datasets.load(Path(MANIFEST))
clips, groups = dataset.clips, groups_of(dataset.clips)
print(f"{len(clips)} clips in {len(set(groups))} groups")
print(f"{len(dataset.task.names)} classes")

# %% [markdown]
# ## The same probe on several vectors
#
# A probe is a small classifier on vectors that do not change. `compare` trains the same one, logistic regression, on each kind of vector and tests each clip once:
#
# - `patchifier-base`: the model of the package;
# - random weights: the same network, never trained (two draws; their mean is shown). Its vectors hold the same descriptors of harmony, rhythm and timbre, so it is hard to beat;
# - MFCC: the classic features, without a model.

# %%
model = patchifier.load()
cache.prepare(dataset, "cache", config=model.config.spectrogram)
data = cache.Cache("cache")
train = Splits.partitioned(data.clips).train
untrained = [random_checkpoint(model.config, data, train, seed=seed) for seed in (0, 1)]
compared = [
    *encoders("patchifier-base", data=data),
    *(as_encoder("random weights", made) for made in untrained),
    *encoders("mfcc", data=data),
]
results = compare(data, compared, "comparison")

# %%
for row in results["rows"]:
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    print(f"{row['encoder']:>22}: {row['value']:.1%}, 95 % interval {interval}")
for note in results["notes"]:
    print(textwrap.fill(note, 72))


# %%
def draw(axes, rows, names, label):
    """Points with intervals, in percent."""
    figures = [(row["value"], row["low"], row["high"]) for row in rows]
    values, low, high = 100 * np.array(figures).T
    places = np.arange(len(rows))
    axes.hlines(places, low, high, color="#0072B2", lw=2)
    axes.plot(values, places, "o", color="#0072B2")
    axes.set(
        yticks=places, yticklabels=names, xlabel=label, ylim=(len(rows) - 0.5, -0.5)
    )


figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
names = [row["encoder"] for row in results["rows"]]
draw(axes, results["rows"], names, "accuracy (%), with 95 % interval")
axes.set_xlim(0, 100)
plt.show()

# %% [markdown]
# ## Paired differences
#
# Two wide intervals that overlap may still belong to vectors that differ: some clips are hard for all. So differences are taken on the same clips. Vectors are better if the interval of the difference leaves out 0. `p_holm` is the p value, corrected for the number of comparisons. An interval that leaves out 0 beside a `p_holm` above 0.05 is a hint, not more.

# %%
figure, axes = plt.subplots(figsize=(7, 1.9), layout="constrained")
names = [f"minus {row['second']}" for row in results["differences"]]
draw(axes, results["differences"], names, "patchifier-base minus it (points)")
axes.axvline(0, color="0.6", lw=1)
plt.show()

# %%
for row in results["differences"]:
    better = "better" if row["low"] > 0 else "worse"
    if row["low"] <= 0 <= row["high"]:
        better = "not told apart"
    interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    words = f"{100 * row['value']:+.1f} points, {interval}, p_holm {row['p_holm']:.3f}"
    print(f"patchifier-base minus {row['second']}: {words}: {better}")

# %% [markdown]
# ## The same with scikit-learn
#
# The embedder is a transformer. Here the vectors are computed once, and the classifier is cross-validated on them.

# %%
files = [clip.path for clip in clips]
labels = np.array([str(clip.target) for clip in clips])
embedder = PatchifierEmbedder().fit(files)
vectors = embedder.transform(files)  # (n, E)

classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
predicted = cross_val_predict(
    classifier, vectors, labels, groups=groups, cv=GroupKFold(4)
)
right = predicted == labels
print(f"{right.mean():.1%} of {len(labels)} clips")

# %% [markdown]
# A pipeline goes from files to labels.

# %%
pipeline = make_pipeline(embedder, classifier.fit(vectors, labels))
print(pipeline.predict(files[:2]))

# %% [markdown]
# ## What does an interval say?
#
# If the test were repeated with other music of the same kind, 95 % of such intervals would hold the true accuracy. Two things make it wide: few clips, and clips that belong together.

# %%
by_group = statistics.bootstrap(groups, lambda chosen: right[chosen].mean())
by_clip = statistics.bootstrap(files, lambda chosen: right[chosen].mean())
print(f"{len(set(groups))} groups drawn: {by_group[0]:.1%} to {by_group[1]:.1%}")
print(f"{len(files)} clips drawn:  {by_clip[0]:.1%} to {by_clip[1]:.1%}")

counts = (28, len(clips), 1_000, 10_000)
for count in counts:
    low, high = statistics.wilson(round(right.mean() * count), count)
    print(f"{count:>6} independent clips: {100 * (high - low):4.1f} points wide")

# %% [markdown]
# So some hundred clips show large differences only.
#
# ## How many labels are needed?
#
# Few-shot: the classifier gets 1, 2, 5 or 10 clips of each class (as far as there are so many to train on), drawn ten times in each fold. The bands hold 95 % of the draws, mean over folds; they are not intervals of the accuracy.

# %%
task = dataset.task
targets = tasks.encode_targets(task, [clip.target for clip in clips])
folds = [Splits.of(clips, names) for names in cross_validation(clips)]
fewest = min(Counter(labels[fold.train])[name] for fold in folds for name in task.names)
shots = [count for count in (1, 2, 5, 10) if count <= fewest]
(mel_stats,) = encoders("mel-stats", data=data)
mel_statistics = mel_stats.encode(data, range(len(clips)))


def learning_curve(features):
    """Value, low and high in percent for each number of shots: (shots, 3)."""
    options = {"shots": shots, "draws": 10}
    figures = []
    for fold in folds:
        rows = probes.few_shot(task, features, targets, fold, **options)
        figures.append([(row["value"], row["low"], row["high"]) for row in rows])
    return 100 * np.mean(figures, axis=0)


learnt = {
    "patchifier-base": learning_curve(vectors),
    "mel statistics": learning_curve(mel_statistics),
}

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for (label, curve), look in zip(learnt.items(), ("o-", "s--"), strict=True):
    colour = "#0072B2" if look == "o-" else "#D55E00"
    axes.fill_between(shots, curve[:, 1], curve[:, 2], color=colour, alpha=0.15, lw=0)
    axes.plot(shots, curve[:, 0], look, color=colour, label=label)
axes.axhline(100 / len(task.names), color="0.5", lw=0.8, ls=":", label="chance")
axes.set(
    xlabel="labelled clips of each class", ylabel="accuracy (%)", xscale="log", ylim=0
)
axes.set_xticks(shots, [str(count) for count in shots])
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Save a head and predict
#
# A head is a classifier in two small files. `patchifier.load` opens it as a model that predicts, and so do `patchifier predict` and the page of `patchifier app`. Here it learns all clips but the last of each class.

# %%
rows_of = {name: np.flatnonzero(labels == name) for name in task.names[:10]}
known = {name: rows[:-1].tolist() for name, rows in rows_of.items()}
taught = teach(vectors, known, identity=model.identity, model="patchifier-base")
taught.head.save("head")
print(f"{taught.accuracy:.1%} by {taught.method}, 95 % interval", end=" ")
print(f"{taught.interval[0]:.1%} to {taught.interval[1]:.1%}")

# %%
head = patchifier.load("head")
held_out = {name: files[rows[-1]] for name, rows in rows_of.items()}
found = head.predict(list(held_out.values()))
for name, probabilities in zip(held_out, found, strict=True):
    best = probabilities.argmax()
    guess = f"{head.task.names[best]} ({probabilities[best]:.0%})"
    print(f"{name:>18}: predicted {guess}")

# %% [markdown]
# A probability is not a promise: the accuracy above says how often the most probable label is right. The folds of a head are drawn by clip. If several clips are of one track, its accuracy is too high; `compare` holds groups together.
