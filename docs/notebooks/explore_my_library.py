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

# or your own: Path("~/Music").expanduser()
FOLDER = demo.write_library("library")

# %% [markdown]
# ## One vector for every file
#
# The table is a file. If you run this again, it is read, not made again. Files that cannot be read are skipped and named.

# %%
done = embed_library(FOLDER, "library.parquet")
model = patchifier.load()
store = search.load("library.parquet")
songs = store.filter(search.Filter())
print(f"{done.files} files, {len(done.skipped)} skipped")
print(f"{model.size} numbers in a vector")


# %% [markdown]
# The next cell only says how songs are named and played below: five seconds of each, from its middle.


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


def cell(value):
    """HTML of a text or of a player."""
    shown = escape(str(value))
    if isinstance(value, Audio):
        shown = value._repr_html_().replace("<audio", "<audio style='width: 13em'")
    return f"<td style='padding: 0.2em 1em 0.2em 0'>{shown}</td>"


def table(header, rows):
    lines = ["".join(map(cell, row)) for row in [header, *rows]]
    return HTML(f"<table><tr>{'</tr><tr>'.join(lines)}</tr></table>")


# %% [markdown]
# ## Neighbours
#
# The score is the cosine of two vectors, from -1 to 1. It is mostly that of their first slice, `similarity`, which is longer than the others.

# %%
song = songs[0]
neighbours = store.similar(song.path, 5)
nearest = neighbours[0]


def shown(found):
    score = "–" if found.score is None else f"{found.score:.2f}"
    return score, name(found), album(found), middle(found)


header = ["score", "song", "album", "five seconds"]
table(header, map(shown, [song, *neighbours]))

# %% [markdown]
# Is that more than chance? Here is the share of the five nearest that are of the same album, over all songs (of a large library, over some), beside the share that chance would give.

# %%
counts = Counter(map(album, songs))
asked = songs[:: 1 + len(songs) // 500]  # of a large library, some
same = [
    album(near) == album(one) for one in asked for near in store.similar(one.path, 5)
]
shares = [(counts[album(one)] - 1) / (len(songs) - 1) for one in asked]
print(f"of the same album: {np.mean(same):.0%}, by chance {np.mean(shares):.0%}")

# %% [markdown]
# The songs of an album share their mastering and their codec, not only their music. So part of this share is about the sound of the files.
#
# ## In what do two songs agree?
#
# A vector has parts: `similarity` and `layers` are learnt, the others describe harmony, rhythm and timbre. Each part has a cosine of its own. Some parts are alike for any two songs, so the cosine of a pair means something only beside that of other pairs.

# %%
stored = search.read("library.parquet")
vectors = dict(zip(stored.paths, stored.vectors, strict=True))
parts = search.agreement(vectors[song.path], vectors[nearest.path], model.slices)

draw = np.random.default_rng(0)
pairs = [draw.choice(stored.vectors, 2, replace=False) for _ in range(300)]
others = [search.agreement(*pair, model.slices) for pair in pairs]
cosines = np.array([list(pair.values()) for pair in others])  # (300, parts)
low, median, high = np.quantile(cosines, (0.05, 0.5, 0.95), axis=0)

# %%
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
rows = np.arange(len(parts))
label = "300 random pairs, 5 to 95 %"
axes.hlines(rows, low, high, color="0.7", linewidth=6, label=label)
axes.plot(median, rows, "|", color="0.3", markersize=10, label="their median")
label = "the song and its nearest"
axes.plot(list(parts.values()), rows, "o", color="#0072B2", label=label)
axes.set(yticks=rows, yticklabels=list(parts), xlabel="cosine of this part")
axes.invert_yaxis()
axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
plt.show()

# %% [markdown]
# A blue point to the right of the grey bar is a part in which these two agree more than random pairs do.
#
# ## Which stretches match?
#
# Both songs are embedded again, five seconds at a time. The best pair of stretches has a player.

# %%
windows = [model.embed_windows(one.path, window_s=5.0) for one in (song, nearest)]
best = search.matching_stretches(*windows, 1, metric=store.metric())[0]
rows = [
    [name(song), f"{best.first_start_s:.1f} s", excerpt(song.path, best.first_start_s)],
    [
        name(nearest),
        f"{best.second_start_s:.1f} s",
        excerpt(nearest.path, best.second_start_s),
    ],
]
print(f"cosine of the two stretches: {best.score:.2f}")
table(["song", "from", "stretch"], rows)

# %% [markdown]
# ## A map
#
# UMAP places songs so that neighbours stay near. Distances between far points mean nothing, and neither do the axes. The largest seven albums have colours and marks.

# %%
directions = store.metric().unit(stored.vectors).astype(np.float32)
places = lay_out(directions).places
albums = {one.path: album(one) for one in songs}
of_point = np.array([albums[path] for path in stored.paths])
colours = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "black"]
looks = zip(counts.most_common(7), colours, "osD^vPX", strict=False)

# %%
figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
axes.scatter(*places.T, s=12, color="0.8")
for (label, _), colour, mark in looks:
    here = places[of_point == label]
    axes.scatter(*here.T, s=34, color=colour, marker=mark, label=label)
axes.set(xlabel="UMAP axis 1 (no unit)", ylabel="UMAP axis 2 (no unit)")
axes.set(xticks=[], yticks=[])
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
table(header, map(shown, path))

# %%
print(Path("path.m3u8").read_text(encoding="utf-8"))

# %% [markdown]
# ## Duplicates
#
# To have one that is known, a copy of the song is written: at half its level, without its first two seconds, as an mp3. It is compared with the songs of the same folder; `duplicates(store)` compares all of your library.

# %%
Path("copies").mkdir(exist_ok=True)
sound, rate = soundfile.read(song.path)
soundfile.write("copies/copy.mp3", 0.5 * sound[2 * rate :], rate)
embed_library([Path(song.path).parent, "copies"], "copies.parquet")

found = duplicates(search.load("copies.parquet"))
for pair in found:
    files = [Path(one.path).name for one in (pair.first, pair.second)]
    print(f"{' and '.join(files)}: {pair.kind}")
    print(f"cosine {pair.score:.2f}, offset {pair.offset_s} s")

# %% [markdown]
# The vector proposes pairs, and an audio fingerprint confirms them. The offset says where the copy begins.
#
# More: `patchifier app library.parquet` shows the same in a browser. `patchifier similar`, `path` and `duplicates` are the commands.
