"""Several seeds, negatives, weights, limits, paths and mixes: in a table and in an index alike."""

import itertools

import numpy as np
import pytest

import patchifier
from patchifier import audio, datasets, library
from patchifier.config import Config, RequestError, update
from patchifier.library import search
from patchifier.library.search import Filter
from tests.library.vectors import cosine, on_circle, paths, random_vectors


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def circle(write):
    angles = (0, 10, 45)
    return write(on_circle(*angles), [f"/music/{angle}.mp3" for angle in angles])


# --- seeds and negatives ---


def test_several_seeds_are_looked_for_by_their_mean_direction(opened, write):
    store = opened(write(on_circle(0, 40, 22, 5, 60), "abcde"))
    found = store.similar(["a", "b"], 3)
    assert paths(found) == ["c", "d", "e"]
    assert [row.score for row in found] == cosine(2, 15, 40)


def test_a_vector_and_a_file_are_seeds_together(opened, write):
    store = opened(write(on_circle(0, 22, 50), "abc"))
    assert paths(store.similar(["a", on_circle(40)[0]], 1)) == ["b"]


def test_what_the_files_should_not_sound_like_turns_the_order_and_is_not_found(opened, write):
    store = opened(write(on_circle(0, 9, -10, 30), "abcd"))
    assert paths(store.similar("a", 3)) == ["b", "c", "d"]
    found = store.similar("a", 3, unlike="d")
    assert paths(found) == ["c", "b"]
    assert [row.score for row in found] == cosine(10, 9)  # with the seed, as without negatives


def test_no_seed_and_seeds_that_cancel_out_are_refused(opened, write):
    store = opened(write(on_circle(0, 180, 50), "abc"))
    for seeds in ([], ["a", "b"]):
        with pytest.raises(RequestError):
            store.similar(seeds)


def test_what_is_meant_and_not_meant_at_once_is_refused(opened, write):
    store = opened(write(on_circle(0, 50, 90), "abc"))
    outside = on_circle(20)[0]
    for seeds, unlike in ((["a", "b"], ["b"]), ([outside], ["a", 2 * outside])):
        for search_ in (store.similar, store.mix):
            with pytest.raises(RequestError, match="should sound like"):
                search_(seeds, unlike=unlike)
    with pytest.raises(RequestError, match="no file"):
        store.similar([], unlike=["a"])


def test_a_path_to_where_it_begins_is_refused(opened, write):
    store, outside = opened(write(on_circle(0, 50, 90), "abc")), on_circle(20)[0]
    for start, end, via in (("a", "a", ()), ("a", "b", ["a"]), (outside, outside, ())):
        with pytest.raises(RequestError, match="twice"):
            store.path(start, end, 5, waypoints=via)


# --- weights ---


def weighted(vectors, query, weights):
    return unit(vectors * np.sqrt(weights)) @ unit(query * np.sqrt(weights))


@pytest.mark.parametrize("kind", ["steps", "each its own", "zeros"])
def test_a_weighted_score_is_the_cosine_of_weighted_vectors(opened, write, kind):
    vectors = random_vectors(400, 70)
    weights = {
        "steps": np.repeat([2.0, 1.0, 0.25, 4.0], [10, 40, 5, 15]),
        "each its own": np.random.default_rng(1).uniform(0, 4, 70),
        "zeros": np.repeat([0.0, 1.0], [50, 20]),
    }[kind]
    expected = weighted(vectors, vectors[7], weights)
    expected[7] = -np.inf
    found = opened(write(vectors, range(400))).similar("7", 20, weights=weights, exact=True)
    assert paths(found) == [str(row) for row in np.argsort(-expected)[:20]]
    assert [row.score for row in found] == pytest.approx(np.sort(expected)[::-1][:20], abs=1e-6)


@pytest.mark.parametrize("heavy", [(0, 10), (30, 40), (66, 70)])
@pytest.mark.parametrize("weight", [1.5, 32.0, 1e4])
def test_rows_that_are_left_out_unseen_are_none_of_the_nearest(write, heavy, weight):
    vectors, weights = random_vectors(3000, 70), np.random.default_rng(1).uniform(0, 1, 70)
    vectors[:50, heavy[0] : heavy[1]] *= 20  # near by these columns alone
    weights[slice(*heavy)] = weight
    store = search.Table.open(write(vectors, range(3000)))
    for query in ("7", "2000"):
        expected = weighted(vectors, vectors[int(query)], weights)
        expected[int(query)] = -np.inf
        found = store.similar(query, 20, weights=weights)
        order = [str(row) for row in np.argsort(-expected) if np.isfinite(expected[row])]
        assert paths(found) == order[:20]
        for count in (1, 5, 15):  # of the 111 that take part
            few = store.similar(query, count, weights=weights, where=Filter(path_prefix="29"))
            assert paths(few) == [path for path in order if path.startswith("29")][:count]


def test_other_weights_after_others_give_what_they_give_alone(write):
    path = write(random_vectors(100, 30), range(100))
    store, chance = search.Table.open(path), np.random.default_rng(2)
    for _ in range(8):
        edges = np.sort(chance.choice(30, 3, replace=False))
        weights = np.repeat(chance.uniform(0.1, 4, 4), np.diff([0, *edges, 30]))
        alone = search.Table.open(path).similar("0", 5, weights=weights)
        assert store.similar("0", 5, weights=weights) == alone


def test_an_index_finds_by_weights_most_of_what_a_table_finds(write, build):
    table = write(random_vectors(1500, 40), range(1500))
    weights = np.repeat([300.0, 1.0], [4, 36])
    one, other = (
        paths(store.similar("3", 10, weights=weights))
        for store in (search.Table.open(table), build(table))
    )
    assert len({*one} & {*other}) >= 8


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(3),
        -np.ones(2),
        np.zeros(2),
        np.array([1, 1e308]),
        np.array([np.nan, 1]),
        np.array(["a", "b"]),
    ],
)
def test_weights_that_make_no_sense(circle, weights):
    with pytest.raises(RequestError):
        search.Table.open(circle).similar("/music/0.mp3", weights=weights)


def test_weights_come_from_the_names_of_slices():
    embed = {"summaries": ["harmony", "rhythm"]}
    config = update(Config(), {"spectrogram": {"n_pitch_bands": 216}, "embed": embed})
    weights = search.slice_weights(config, {"harmony": 2.0, "layers": 0.0})
    added = 32 * config.pooled_size / 72  # layers count 32 times, harmony has 72 numbers
    assert weights[config.embedding_slices["harmony"]] == pytest.approx(1 + added)
    assert (weights[config.embedding_slices["layers"]] == 0).all()
    layers = search.slice_weights(config, {"layers": 2.0})[config.embedding_slices["layers"]]
    assert (layers == 64).all()
    assert (weights[config.embedding_slices["rhythm"]] == 1).all()
    for factors in ({"loudness": 1.0}, {"harmony": -1.0}):
        with pytest.raises(RequestError):
            search.slice_weights(config, factors)


SLICES = {"layers": 5, "harmony": 30, "pulse": 5}


def test_the_learnt_slice_counts_more_by_default_in_searches_paths_and_mixes(opened, write):
    vectors = random_vectors(60, 40)
    store = opened(write(vectors, range(60), slices=SLICES))
    weights = np.repeat([32.0, 1.0], [5, 35])
    assert search.default_weights(SLICES).tolist() == weights.tolist()
    for walk in (store.similar, store.mix):
        found = walk("7", 9)
        assert found == walk("7", 9, weights=weights)
        assert paths(found) != paths(walk("7", 9, weights=np.ones(40)))
    assert store.path("3", "9", 8) == store.path("3", "9", 8, weights=weights)
    expected = np.sort(weighted(vectors, vectors[7], weights))[::-1][1:10]
    assert [row.score for row in store.similar("7", 9)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "slices",
    [None, {"layers": 40}, {"harmony": 20, "pulse": 20}, {"layers": 5, "harmony": 5}, {"layers": -5, "harmony": 45},
     {"layers": "5", "harmony": 35}, {"layers": 5.0, "harmony": 35.0}, ["layers"], {}],
)  # fmt: skip
def test_without_sizes_that_add_up_the_cosine_is_plain(opened, write, slices):
    store = opened(write(random_vectors(30, 40), range(30), slices=slices))
    assert store.similar("7", 5) == store.similar("7", 5, weights=np.ones(40))


def test_vectors_with_a_slice_of_similar_music_are_compared_as_they_are(opened, write):
    config = update(Config(), {"embed": {"whiten": True, "n_similarity": 64}})
    weights = search.slice_weights(config, {"layers": 0.5})
    assert {name: set(weights[part]) for name, part in config.embedding_slices.items()} == {
        "similarity": {1.0},
        "layers": {0.5},
    }
    slices = {"similarity": 5, "layers": 20, "harmony": 15}
    store = opened(write(random_vectors(60, 40), range(60), slices=slices))
    assert store.similar("7", 5) == store.similar("7", 5, weights=np.ones(40))


@pytest.fixture(scope="module")
def clips():
    """Unit vectors of some bundled clips by the default model, and its slices and config."""
    model = patchifier.load()
    vectors = [model.embed(clip.path) for clip in datasets.load("demo").clips[::4]]
    return unit(np.stack(vectors).astype(np.float64)), model.slices, model.config


def shares(vectors, slices, weights):
    """Share of each slice in the squared lengths of weighted vectors."""
    squares = (vectors**2 * weights).sum(axis=0) / (vectors**2 * weights).sum()
    return {name: squares[part].sum() for name, part in slices.items()}


def test_a_weight_of_two_makes_any_slice_count_about_as_much_as_the_heaviest(clips):
    vectors, slices, config = clips
    assert shares(vectors, slices, np.ones(len(vectors[0])))["similarity"] > 0.8
    for name in [*slices][1:]:
        two, four = (search.slice_weights(config, {name: factor}) for factor in (2.0, 4.0))
        found = shares(vectors, slices, two)
        assert 0.4 < found[name] / found["similarity"] < 2.5, name
        assert shares(vectors, slices, four)[name] > 0.6, name


def test_the_highest_weight_of_a_slice_lists_files_that_are_near_by_it(clips, write):
    vectors, slices, config = clips
    store = search.Table.open(write(vectors, range(len(vectors))))

    def nearness(part, weights):
        """Mean share of files that are less near by a part than those of lists of five."""
        cosines = unit(vectors[:, part]) @ unit(vectors[:, part]).T
        shares = []
        for row, own in enumerate(cosines):
            found = store.similar(str(row), 5, weights=weights)
            shares += [(own < own[int(path)]).mean() for path in paths(found)]
        return np.mean(shares)

    for name, part in slices.items():
        alone = np.zeros(len(vectors[0]))
        alone[part] = 1.0
        highest = search.slice_weights(config, {name: 4.0})
        assert nearness(part, highest) > 0.9 * nearness(part, alone), name


def test_a_weight_of_one_is_the_default_and_more_is_never_less(clips):
    _, slices, config = clips
    for name, part in slices.items():
        assert (search.slice_weights(config, {name: 1.0}) == 1.0).all()
        factors = [0.0, 0.3, 1.0, 1.1, 2.0, 4.0, 100.0]
        weights = [search.slice_weights(config, {name: factor}) for factor in factors]
        assert (np.diff([one[part].mean() for one in weights]) > 0).all()
        assert all((np.delete(one, range(part.start, part.stop)) == 1).all() for one in weights)


def test_a_table_of_a_model_states_its_slices(tmp_path):
    model = patchifier.load()
    sound = 0.1 * np.random.default_rng(0).standard_normal(22_050).astype(np.float32)
    audio.save(tmp_path / "a.wav", sound)
    library.embed_library(tmp_path, tmp_path / "t.parquet", embedder=model, workers=1)
    slices = search.load(tmp_path / "t.parquet").slices
    assert slices == {name: part.stop - part.start for name, part in model.slices.items()}
    assert search.default_weights(slices) is None
    assert set(search.slice_weights(model.config, {})) == {1.0}


# --- limits ---


def test_no_more_files_of_an_artist_or_an_album_than_the_limit(opened, write):
    artists = ["X", "x", "X", "Y", None, None, "Z"]
    albums = [None, None, None, "one", "one", None, "one"]
    table = write(on_circle(*range(1, 8)), "abcdefg", artist=artists, album=albums)
    store, query = opened(table), on_circle(0)[0]
    assert paths(store.similar(query, 7, max_per_artist=1)) == [*"adefg"]
    assert paths(store.similar(query, 7, max_per_artist=2)) == [*"abdefg"]
    assert paths(store.similar(query, 7, max_per_album=1)) == [*"abcdf"]
    assert paths(store.similar(query, 2, max_per_artist=1)) == [*"ad"]


def test_one_album_is_known_by_its_album_artist(opened, write):
    tags = {"artist": [*"XYZ"], "album": ["one"] * 3, "albumartist": ["V"] * 3}
    store = opened(write(on_circle(1, 2, 3), "abc", **tags))
    assert paths(store.similar(on_circle(0)[0], 3, max_per_album=2)) == [*"ab"]


def test_without_album_artist_one_album_lies_in_one_folder(opened, write):
    files = ["/a/1.mp3", "/a/2.mp3", "/b/1.mp3", "/b/2.mp3"]
    tags = {"artist": [*"WXYZ"], "album": ["Hits", "HITS", "Hits", None]}
    store = opened(write(on_circle(1, 2, 3, 4), files, **tags))
    query = on_circle(0)[0]
    assert paths(store.similar(query, 4, max_per_album=1)) == [files[0], *files[2:]]
    walk = store.mix(files[0], 4, max_per_album=1, drift=0.0)
    assert paths(walk) == [files[0], *files[2:]]
    assert files[1] not in paths(store.path(files[0], files[3], 4, max_per_album=1))


def test_a_limit_is_met_behind_many_files_of_one_artist(opened, write):
    artists = ["X"] * 200 + ["Y"]
    store = opened(write(on_circle(*np.linspace(1, 50, 201)), range(201), artist=artists))
    assert len(store.similar(on_circle(0)[0], 2, max_per_artist=1)) == 2


@pytest.mark.parametrize("limit", ["max_per_artist", "max_per_album"])
def test_limits_below_zero_are_refused(circle, limit):
    with pytest.raises(RequestError):
        search.Table.open(circle).similar("/music/0.mp3", **{limit: -1})


# --- hubs ---


def hubs_and_others(count=150, size=24):
    """Vectors around several directions, the first five near to the mean of all."""
    vectors = random_vectors(count, size) + 0.6
    vectors[:5] = vectors.mean(0) + 0.2 * random_vectors(5, size, seed=1)
    return vectors


def test_files_that_are_near_to_everything_stand_in_fewer_lists(opened, write):
    store = opened(write(hubs_and_others(), range(150)))

    def in_lists(**options):
        lists = [paths(store.similar(str(row), 5, **options)) for row in range(5, 150, 9)]
        return sum(path in map(str, range(5)) for path in itertools.chain(*lists))

    assert in_lists(discount_hubs=True) < in_lists(discount_hubs=False) / 2


def test_a_discounted_score_is_still_the_cosine(opened, write):
    vectors = hubs_and_others()
    found = opened(write(vectors, range(150))).similar("9", 5, discount_hubs=True)
    scores = unit(vectors) @ unit(vectors[9])
    expected = [scores[int(row.path)] for row in found]
    assert [row.score for row in found] == pytest.approx(expected, abs=1e-6)


# --- paths ---


def test_a_path_has_even_steps_and_no_file_twice(opened, write):
    store = opened(write(on_circle(*range(0, 91, 2)), [f"{angle:02}" for angle in range(0, 91, 2)]))
    found = store.path("00", "90", 6)
    assert paths(found) == ["00", "18", "36", "54", "72", "90"]
    assert [row.score for row in found] == cosine(0, 18, 18, 18, 18, 18)


def test_a_path_leads_through_its_waypoints(opened, write):
    store = opened(write(on_circle(*range(0, 181, 5)), [str(angle) for angle in range(0, 181, 5)]))
    found = paths(store.path("0", "30", 6, waypoints=["60"]))
    assert (found[0], found[-1]) == ("0", "30")
    assert found.index("60") == 3  # twice as many steps there as back
    assert len({*found}) == 6


def test_a_path_has_smaller_steps_than_the_nearest_files_to_its_places(write):
    vectors = random_vectors(2000, 12)
    store, units, largest = search.Table.open(write(vectors, range(2000))), unit(vectors), []
    for number in range(10):
        start, end = str(number), str(1000 + number)
        angle = np.arccos(units[number] @ units[1000 + number])
        shares = np.arange(1, 7) / 7
        line = np.sin((1 - shares) * angle)[:, None] * units[number]
        line += np.sin(shares * angle)[:, None] * units[1000 + number]
        nearest = [int(store.similar(place, 1)[0].path) for place in line]
        steps = units[[number, *nearest, 1000 + number]]
        greedy = (steps[1:] * steps[:-1]).sum(1).min()
        largest.append((min(row.score for row in store.path(start, end, 8)), greedy))
    ours, greedy = np.mean(largest, axis=0)
    assert ours > greedy


def test_a_path_keeps_to_the_limits(opened, write):
    artists = ["X", *["Y"] * 20, *[f"artist {number}" for number in range(9)], "X"]
    angles = [0, *np.linspace(5, 85, 20), *np.linspace(8, 82, 9), 90]
    store = opened(write(on_circle(*angles), range(31), artist=artists))
    found = store.path("0", "30", 8, max_per_artist=2)
    counts = [row.tags["artist"] for row in found]
    assert len(found) == 8
    assert counts.count("Y") <= 2 == counts.count("X")


def test_a_path_of_far_more_files_than_there_are_ends_at_once(opened, write):
    store = opened(write(random_vectors(20, 6), range(20)))
    assert len(store.path("3", "9", 10**9)) == 20


def test_a_path_through_few_files_is_shorter(opened, write):
    store = opened(write(on_circle(0, 50, 90), "abc"))
    assert paths(store.path("a", "c", 9)) == ["a", "b", "c"]
    assert paths(store.path("a", "c", 9, where=Filter(path="b"))) == ["a", "b", "c"]
    assert paths(store.path("a", "c", 2)) == ["a", "c"]


def test_a_path_from_a_file_outside_begins_at_the_nearest(opened, write):
    store = opened(write(on_circle(0, 45, 90), "abc"))
    assert paths(store.path(on_circle(3)[0], "c", 3)) == ["a", "b", "c"]


def test_a_file_outside_is_held_by_the_nearest_one_at_both_ends(opened, write):
    store = opened(write(on_circle(0, 30, 60, 90), "abcd"))
    outside = on_circle(2, 88)
    assert paths(store.path(outside[0], "d", 2)) == ["a", "d"]
    assert paths(store.path("a", outside[1], 2)) == ["a", "d"]
    assert paths(store.path(outside[1], outside[0], 2)) == ["d", "a"]
    assert paths(store.path("b", "d", 3, waypoints=[outside[0]])) == ["b", "a", "d"]


def test_no_file_stands_for_two_files_outside(opened, write):
    store = opened(write(on_circle(0, 30, 60, 90), "abcd"))
    outside = on_circle(2, 3)
    assert paths(store.path(*outside, 2)) == ["a", "b"]
    assert paths(store.path(outside[0], "a", 2)) == ["b", "a"]


def test_a_path_between_the_same_and_between_opposite_directions(opened, write):
    store = opened(write(on_circle(0, 0, 180, 20, 90), "abcde"))
    assert sorted(paths(store.path("a", "b", 3))) == ["a", "b", "d"]
    assert len(store.path("a", "c", 5)) == 5


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("/music/0.mp3", "/music/0.mp3"), {}),
        (("/music/0.mp3", "/music/45.mp3", 2), {"waypoints": ["/music/10.mp3"]}),
        (("/music/0.mp3", "/music/45.mp3", 4), {"waypoints": ["/music/0.mp3"]}),
        (("/music/0.mp3", "/nowhere.mp3"), {}),
        (("/music/0.mp3", "/music/45.mp3", True), {}),
    ],
)
def test_paths_that_make_no_sense(circle, arguments, options):
    with pytest.raises(RequestError):
        search.Table.open(circle).path(*arguments, **options)


# --- mixes ---


def test_a_mix_begins_with_its_seeds_and_stays_near_all_of_them(opened, write):
    store = opened(write(on_circle(0, 30, 14, 17, 60, -60), "abcdef"))
    found = store.mix(["b", "a"], 4, drift=0.0)
    assert paths(found) == ["b", "a", "c", "d"]
    assert [row.score for row in found] == cosine(0, 30, 14, 3)


def test_a_mix_that_drifts_goes_farther(opened, write):
    angles = [*range(0, 80, 4), *range(-79, 0, 9)]
    store = opened(write(on_circle(*angles), angles))
    near, far = (max(map(int, paths(store.mix("0", 12, drift=drift)))) for drift in (0.0, 1.0))
    assert near < far == 44  # 4 degrees at each step


def test_a_mix_from_outside_has_scores_from_the_seed_on(opened, write):
    store = opened(write(on_circle(5, 12), "ab"))
    assert [row.score for row in store.mix(on_circle(0)[0], 2, drift=1.0)] == cosine(5, 7)


def test_a_mix_turns_away_from_what_is_not_meant_and_keeps_to_the_limits(opened, write):
    artists = ["V", "W", "W", "W", "X", "Y"]
    store = opened(write(on_circle(0, 9, 12, -10, -14, 40), "abcdef", artist=artists))
    found = paths(store.mix("a", 3, unlike=["f"], drift=0.0, max_per_artist=1))
    assert found == ["a", "e", "d"]
