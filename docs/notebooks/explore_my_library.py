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
# # Explore my library
#
# Which songs of a folder sound alike, and in what do they agree? With the 112 bundled clips this takes a minute on two cores. It works offline and needs `pip install '.[demo,app,docs]'`.
#
# For your own music, change one line in the next cell.

# %%
from collections import Counter
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import HTML, Audio

import patchifier
from patchifier import audio
from patchifier.app.layout import lay_out
from patchifier.datasets import demo
from patchifier.library import embed_library, search
from patchifier.library.playlist import entries, write_m3u8
from patchifier.library.search.duplicates import duplicates

FOLDER = demo.write_library("library")  # or your own: Path("~/Music").expanduser()

# %% [markdown]
# ## One vector for every file
#
# The table is a file. If you run this again, it is read, not made again. Files that cannot be read are skipped and named.

# %%
done = embed_library(FOLDER, "library.parquet")
model = patchifier.load()
store = search.load("library.parquet")
songs = store.filter(search.Filter())
print(f"{done.files} files, {len(done.skipped)} skipped, {model.size} numbers in a vector")


# %% [markdown]
# The next cell only says how songs are named and heard below: five seconds of each, from its middle.


# %%
def name(song):
    title = song.tags.get("title", Path(song.path).stem)
    return f"{song.tags.get('artist', 'unknown artist')} – {title}"


def album(song):
    return song.tags.get("album", Path(song.path).parent.name)


def excerpt(path, start_s, seconds=5.0):
    sound = audio.load(path, start_s=start_s, end_s=start_s + seconds)
    return Audio(sound, rate=audio.SAMPLE_RATE)


def middle(song):
    return excerpt(song.path, max(0.0, song.end_s / 2 - 2.5))


def table(header, rows):
    cells = [[x._repr_html_() if isinstance(x, Audio) else escape(str(x)) for x in r] for r in rows]
    lines = [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells]
    return HTML(f"<table><tr><th>{'</th><th>'.join(header)}</th></tr>{''.join(lines)}</table>")


# %% [markdown]
# ## Neighbours
#
# The score is the cosine of two vectors, from -1 to 1. A search weighs the learnt part of a vector 32 times; `docs/search.md` says why.

# %%
song = songs[0]
neighbours = store.similar(song.path, 5)
rows = [["the song", name(song), album(song), middle(song)]]
rows += [[f"{found.score:.2f}", name(found), album(found), middle(found)] for found in neighbours]
table(["score", "song", "album", "five seconds"], rows)

# %% [markdown]
# Is that more than chance? Here is the share of the five nearest that are of the same album, over all songs (of a large library, over some), beside the share that chance would give.

# %%
counts = Counter(map(album, songs))
asked = songs[:: 1 + len(songs) // 500]  # of a large library, some
same = [album(near) == album(one) for one in asked for near in store.similar(one.path, 5)]
shares = [(counts[album(one)] - 1) / (len(songs) - 1) for one in asked]
print(f"of the same album: {np.mean(same):.0%} of neighbours, {np.mean(shares):.0%} by chance")

# %% [markdown]
# The songs of an album share their mastering and their codec, not only their music. So part of this share is about the sound of the files.
#
# ## In what do two songs agree?
#
# A vector has parts: `layers` is learnt, the others describe harmony, rhythm and timbre. Each part has a cosine of its own. Some parts are alike for any two songs, so the cosine of a pair means something only beside that of other pairs.

# %%
stored = search.read("library.parquet")
vectors = dict(zip(stored.paths, stored.vectors, strict=True))
parts = search.agreement(vectors[song.path], vectors[neighbours[0].path], model.slices)

draw = np.random.default_rng(0)
pairs = [draw.choice(stored.vectors, 2, replace=False) for _ in range(300)]
others = [search.agreement(*pair, model.slices) for pair in pairs]
usual = {part: np.quantile([pair[part] for pair in others], (0.05, 0.5, 0.95)) for part in parts}

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
rows = np.arange(len(parts))
low, median, high = np.array(list(usual.values())).T
axes.hlines(rows, low, high, color="0.7", linewidth=6, label="300 random pairs, 5 to 95 %")
axes.plot(median, rows, "|", color="0.3", markersize=10, label="their median")
axes.plot(list(parts.values()), rows, "o", color="#0072B2", label="the song and its nearest")
axes.set(yticks=rows, yticklabels=list(parts), xlabel="cosine of this part (-1 to 1)")
axes.invert_yaxis()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# A blue point to the right of the grey bar is a part in which these two agree more than random pairs do.
#
# ## Which stretches match?
#
# Both songs are embedded again, five seconds at a time. The best pair of stretches can be heard.

# %%
nearest = neighbours[0]
windows = [model.embed_windows(one.path, window_s=5.0) for one in (song, nearest)]
best = search.matching_stretches(*windows, 1, metric=store.metric())[0]
rows = [
    [name(song), f"{best.first_start_s:.1f} s", excerpt(song.path, best.first_start_s)],
    [name(nearest), f"{best.second_start_s:.1f} s", excerpt(nearest.path, best.second_start_s)],
]
print(f"cosine of the two stretches: {best.score:.2f}")
table(["song", "from", "stretch"], rows)

# %% [markdown]
# ## A map
#
# UMAP places songs so that neighbours stay near. Distances between far points mean nothing, and neither do the axes. The largest seven albums have colours and marks.

# %%
places = lay_out(store.metric().unit(stored.vectors).astype(np.float32)).places
albums = {one.path: album(one) for one in songs}
of_point = np.array([albums[path] for path in stored.paths])
colours = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"]

# %%
figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
axes.scatter(*places.T, s=12, color="0.8")
for shown, colour, mark in zip(counts.most_common(7), colours, "osD^vPX", strict=False):
    here = of_point == shown[0]
    axes.scatter(*places[here].T, s=34, color=colour, marker=mark, label=shown[0])
axes.set(xticks=[], yticks=[], xlabel="UMAP axis 1 (no unit)", ylabel="UMAP axis 2 (no unit)")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
plt.show()

# %% [markdown]
# ## A path and a playlist
#
# A path goes from one song to another in small steps. Here it ends at the song that is least like the first. The score of a step is the cosine with the song before.

# %%
farthest = store.similar(song.path, len(songs))[-1]
path = store.path(song.path, farthest.path, 6)
write_m3u8(entries(store, path), "path.m3u8")
rows = [[f"{step.score:.2f}", name(step), album(step), middle(step)] for step in path]
table(["score", "song", "album", "five seconds"], rows)

# %%
print(Path("path.m3u8").read_text(encoding="utf-8"))

# %% [markdown]
# ## Duplicates
#
# To have one that is known, a copy of the song is written: at half its level, without its first two seconds, as an mp3. `changed=True` embeds only what is new.

# %%
Path("copies").mkdir(exist_ok=True)
sound, rate = soundfile.read(song.path)
soundfile.write("copies/copy.mp3", 0.5 * sound[2 * rate :], rate)
embed_library([FOLDER, "copies"], "library.parquet", changed=True)

found = duplicates(search.load("library.parquet"))
for pair in found:
    files = f"{Path(pair.first.path).name} and {Path(pair.second.path).name}"
    print(f"{pair.kind}: {files}, cosine {pair.score:.2f}, offset {pair.offset_s} s")

# %% [markdown]
# The vector proposes pairs, and an audio fingerprint confirms them. The offset says where the copy begins.
#
# More: `patchifier app library.parquet` shows the same in a browser. `patchifier similar`, `path` and `duplicates` are the commands.
