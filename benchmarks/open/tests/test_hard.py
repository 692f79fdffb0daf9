"""The hard retrieval: deformations whose effect is known, what is drawn, scores, and a small root of tones."""

import json
from dataclasses import replace

import groups
import hard
import numpy as np
import pytest
import soundfile
from hard import Column, Endpoint

from patchifier import audio
from patchifier.config import RequestError

RATE = 22_050
FIXED = "6f09b0540ee6b862"


def deformed(waveform, kind, amount, seed=0):
    column = Column("x", kind, amount, 0.5)
    return hard.deformation(column)(waveform.astype(np.float64), np.random.default_rng(seed))


def level_db(waveform):
    return 10 * np.log10(np.mean(np.asarray(waveform, np.float64) ** 2))


# --- what is fixed ---


def test_the_endpoint_is_the_one_that_was_fixed():
    """Whoever changes it makes another endpoint: scores by the two are never in one table."""
    assert Endpoint.read().digest == FIXED


def test_the_endpoint_states_every_number_with_a_reason():
    content = json.loads(hard.ENDPOINT.read_text(encoding="utf-8"))
    stated = [*content["settings"].values(), *content["expected"].values(), *content["columns"]]
    assert all(row["why"].strip() for row in stated)
    endpoint = Endpoint.read()
    assert sum(column.weight for column in endpoint.columns) == pytest.approx(1)
    for column in endpoint.columns[1:]:
        hard.deformation(column)


def test_weights_that_do_not_sum_to_one_are_refused(tmp_path):
    content = json.loads(hard.ENDPOINT.read_text(encoding="utf-8"))
    content["columns"][0]["weight"] = 0.6
    (tmp_path / "e.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"weights sum to 1\.1"):
        Endpoint.read(tmp_path / "e.json")


# --- deformations ---


def test_a_gain_is_in_decibels(noise):
    sound = noise(1.0)
    np.testing.assert_allclose(deformed(sound, "gain_db", -12), sound * 10**-0.6, rtol=1e-6)


@pytest.mark.parametrize("speed", [1.03, 1.06])
def test_a_speed_raises_pitch_and_shortens_alike(tone, speed):
    found = deformed(tone(1000.0, seconds=3.0), "speed", speed)
    assert len(found) == pytest.approx(3 * RATE / speed, abs=2)
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert spectrum.argmax() * RATE / len(found) == pytest.approx(1000 * speed, abs=1)


def test_pink_noise_has_its_power_and_falls_by_3_db_an_octave(noise):
    sound = noise(20.0)
    added = deformed(sound, "pink_snr_db", 20.0) - sound
    assert level_db(sound) - level_db(added) == pytest.approx(20, abs=0.01)
    power = np.abs(np.fft.rfft(added)) ** 2
    hertz = np.fft.rfftfreq(len(added), 1 / RATE)
    octaves = [power[(hertz >= low) & (hertz < 2 * low)].sum() for low in (100, 400, 1600)]
    np.testing.assert_allclose(octaves, np.mean(octaves), rtol=0.1)


@pytest.mark.parametrize(("hertz", "expected_db"), [(250, 3.0), (1000, 0.0), (4000, -3.0)])
def test_a_tilt_lowers_each_octave_by_its_slope(tone, hertz, expected_db):
    sound = tone(float(hertz), seconds=2.0)
    found = deformed(sound, "tilt_db", 1.5)
    assert len(found) == len(sound)
    middle = slice(RATE // 2, -RATE // 2)
    assert level_db(found[middle]) - level_db(sound[middle]) == pytest.approx(expected_db, abs=0.05)
    assert np.corrcoef(found[middle], sound[middle])[0, 1] > 0.999  # no delay


def test_mp3_keeps_length_and_place(noise):
    smooth = np.convolve(noise(2.0), np.ones(30) / 30, "same")
    found = deformed(smooth, "mp3", 32)
    assert len(found) == len(smooth)
    assert np.corrcoef(found, smooth)[0, 1] > 0.9


def test_a_deformation_that_is_none_is_refused():
    with pytest.raises(RequestError, match="no deformation 'reverb'"):
        hard.deformation(Column("x", "reverb", 1, 0.5))


# --- scores ---


COLUMNS = (Column("clean", "none", 0, 0.5), Column("a", "gain_db", -12, 0.3), Column("b", "mp3", 32, 0.2))  # fmt: skip


def test_the_endpoint_is_the_weighted_mean_and_ratios_are_to_the_clean_column():
    hits = {"clean": [1, 1, 1, 0], "a": [1, 0, 1, 0], "b": [0, 0, 1, 0]}
    hits = {name: np.array(values, float) for name, values in hits.items()}
    found = hard.quantities(hits, np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [0, 0, 0, 4]]), COLUMNS)
    assert found["endpoint"][0] == pytest.approx(0.5 * 0.75 + 0.3 * 0.5 + 0.2 * 0.25)
    assert found["a / clean"][:2].tolist() == pytest.approx([2 / 3, 1])
    assert found["deformed / clean"][0] == pytest.approx((0.6 * 0.5 + 0.4 * 0.25) / 0.75)
    assert np.isnan(found["b / clean"][2])  # no query is found in this draw


def test_a_query_is_found_if_the_nearest_entry_is_of_its_track():
    database = [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [1.0, 1.0]]
    queries = [[3.0, 0.1], [0.2, 2.0], [3.0, 2.9]]
    features = np.array([*database, *queries])
    found = hard.found_tracks(features, ["p", "q", "r", "s"], [0, 1, 2, 3], ["p", "p", "s"])
    assert found.tolist() == [1, 0, 1]
    shifted = features * [1, 1000.0] + 7  # standardised: units do not matter
    again = hard.found_tracks(shifted, ["p", "q", "r", "s"], [0, 1, 2, 3], ["p", "p", "s"])
    assert again.tolist() == [1, 0, 1]


def test_differences_are_paired_over_whole_tracks():
    tracks = [f"t{number // 5}" for number in range(50)]
    right = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    hits = {"one": dict.fromkeys(("clean", "a", "b"), right)}
    hits |= {"same": hits["one"], "none": dict.fromkeys(("clean", "a", "b"), 0 * right)}
    endpoint = replace(Endpoint.read(), columns=COLUMNS)
    scores, compared = hard.summarise(hits, tracks, endpoint)
    gaps = {(row["second"], row["quantity"]): row for row in compared}
    same, none = gaps["same", "endpoint"], gaps["none", "endpoint"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    assert none["low"] > 0.2
    (own,) = [row for row in scores if (row["encoder"], row["quantity"]) == ("one", "clean")]
    assert own["low"] < own["value"] == right.mean() < own["high"]


# --- a small root ---


@pytest.fixture
def small_root(tmp_path, noise):
    """Four validation-side tracks, each noise of its own colour, and six of the training side; three clips a track."""
    generator = np.random.default_rng(0)

    def write(path, colour, seconds):
        spectrum = np.fft.rfft(noise(seconds, seed=int(generator.integers(1000))))
        gain_db = np.interp(np.linspace(0, 11, len(spectrum)), np.arange(12), colour)
        sound = np.fft.irfft(spectrum * 10 ** (gain_db / 20))
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / path, 0.05 * sound / sound.std(), RATE)

    rows, listed = [], []
    for number in range(10):
        colour, group = generator.uniform(-20, 20, 12), f"recordings/x/{number}"
        side = "valid" if number < 4 else "train"
        for part in range(3):
            path = f"clips/recordings/x/{number}-{part}.ogg"
            write(path, colour, 10.0)
            rows.append({"path": path, "group": group, "split": side, "target": group})
            rows[-1]["source"] = f"deb/x/{number}.ogg"
            if side == "train":
                path = f"pretraining/recordings/x/{number}-{part}.ogg"
                write(path, colour, 12.0)
                listed.append({"path": path, "group": group, "seconds": 12.0})
                listed[-1]["source"] = f"deb/x/{number}.ogg"
    groups.write_manifest(tmp_path / "tasks" / "recordings-retrieval.jsonl", rows)
    lines = "".join(json.dumps(row) + "\n" for row in listed)
    (tmp_path / "pretraining-recordings.jsonl").write_text(lines)
    return tmp_path


SMALL = replace(
    Endpoint.read(),
    draws=50,
    columns=(Column("clean", "none", 0, 0.5), Column("speed+6", "speed", 1.06, 0.5)),
    expected={"tracks": 4, "queries": 16, "distractors": 12},
)


def test_the_database_holds_one_clip_of_each_track_and_no_query_is_cut_from_it(small_root):
    database, queries = hard.hard_clips(small_root, SMALL)
    valid = [clip for clip in database if clip.split == "valid"]
    assert len({clip.group for clip in valid}) == len(valid) == 4
    assert [clip.split for clip in database[4:]] == ["train"] * 12
    assert {clip.end_s - clip.start_s for clip in database} == {10.0}
    assert database[-1].start_s == 1.0  # the middle of 12 s
    stored = {clip.path for clip in database}
    assert not stored & {str(small_root / query.source) for query in queries}
    places = [(query.source, query.start_s) for query in queries]
    assert len(places) == 32
    assert places[:16] == places[16:]  # the same in each column
    for source, start_s in places[:16]:
        others = [start for path, start in places[:16] if path == source]
        assert len(others) == 2
        assert abs(others[0] - others[1]) >= 3.18
        assert 0 <= start_s <= 10 - 3.18
    assert hard.hard_clips(small_root, SMALL) == (database, queries)
    other, _ = hard.hard_clips(small_root, replace(SMALL, seed="hard-2"))
    assert other != database


def test_a_root_with_other_numbers_is_refused(small_root):
    with pytest.raises(RequestError, match="'queries': 16"):
        hard.hard_clips(small_root, replace(SMALL, expected=SMALL.expected | {"queries": 17}))


def test_a_distractor_of_the_validation_side_is_refused(small_root):
    heard = small_root / "pretraining-recordings.jsonl"
    row = {"path": "pretraining/x.ogg", "group": "recordings/x/0", "seconds": 12.0}
    heard.write_text(heard.read_text() + json.dumps(row) + "\n")
    with pytest.raises(RequestError, match="shares 'recordings/x/0'"):
        hard.hard_clips(small_root, SMALL)


def test_a_root_without_the_benchmark_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"build\.py"):
        hard.hard_clips(tmp_path, SMALL)


def test_a_deformed_query_is_as_long_as_a_clean_one_and_written_once(small_root):
    _, queries = hard.hard_clips(small_root, SMALL)
    path = small_root / hard.write_query(small_root, queries[-1])
    assert audio.load(path).shape == (3 * RATE,)
    assert np.abs(audio.load(path)[-100:]).max() > 1e-3  # no silence at its end
    hard.evaluate(small_root, ["mel-stats"], small_root / "out", endpoint=SMALL)
    stamp = path.stat().st_mtime_ns
    hard.evaluate(small_root, ["mel-stats"], small_root / "out", endpoint=SMALL)
    assert path.stat().st_mtime_ns == stamp


def test_tables_hold_every_encoder_and_column_and_the_hash_of_the_endpoint(small_root):
    rows = ["mel-stats", "both=mel-stats+summaries"]
    found = hard.evaluate(small_root, rows, small_root / "out", endpoint=SMALL)
    clean = [row for row in found.scores if row["quantity"] == "clean"]
    assert [row["encoder"] for row in clean] == ["mel-stats", "both"]
    assert clean[0]["value"] > 0.9  # colours differ
    assert {row["second"] for row in found.differences} == {"both"}
    results = json.loads((small_root / "out" / "results.json").read_text())
    assert results["facts"]["digest"] == SMALL.digest
    assert results["facts"]["entries"] == 16
    table = (small_root / "out" / "table.md").read_text()
    for name in ("clean", "speed+6", "speed+6 / clean", "mel-stats - both", SMALL.digest):
        assert name in table


def test_two_rows_of_one_name_are_refused(small_root):
    with pytest.raises(RequestError, match="two rows have one name"):
        hard.evaluate(small_root, ["a=mel-stats", "a=mfcc"], small_root / "out", endpoint=SMALL)
