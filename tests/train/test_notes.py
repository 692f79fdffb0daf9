"""Targets from the notes of rendered clips: where they are in time, what is unknown, the loss."""

import json
import math

import numpy as np
import pytest
import torch

from patchifier.config import Config, RequestError, update
from patchifier.datasets import Clip
from patchifier.nn.descriptors import DESCRIPTORS, LAGS, LAGS_S
from patchifier.nn.equivariant import LEAST_PROBABILITY
from patchifier.nn.model import Patchifier
from patchifier.train.note_labels import NoteLabels
from patchifier.train.notes import (
    DRUMS,
    LOWEST,
    NOTE_TARGETS,
    PITCHES,
    QUALITIES,
    UNKNOWN,
    Crop,
    Score,
)
from patchifier.train.objectives import Objectives
from tests.builders import TINY
from tests.train.test_objectives import batch_of, half, music

FRAME_S, WIDTH = 512 / 22_050, 32
PATCH_S = WIDTH * FRAME_S
EMPTY = Score.of({"notes": []})


def crop(start=0.0, scale=1.0, semitones=0.0, n_patches=4) -> Crop:
    return Crop(start, scale, semitones, n_patches, WIDTH, FRAME_S)


def values(name: str, score: Score, **where) -> np.ndarray:
    found = NOTE_TARGETS[name].values(score, crop(**where))
    assert found is not None
    assert found.shape == NOTE_TARGETS[name].shape(where.get("n_patches", 4))
    return found


def note(start: float, end: float, pitch=60, program=0) -> Score:
    """One note, times in patches."""
    return Score.of({"notes": [[start * PATCH_S, end * PATCH_S, pitch, program]]})


def sounds(score: Score, pitch=60, **where) -> list[int]:
    """Quarters of patches in which a pitch sounds."""
    quarters = values("notes", score, **where).reshape(-1, PITCHES)
    assert quarters.sum() == quarters[:, pitch - LOWEST].sum()
    return np.flatnonzero(quarters[:, pitch - LOWEST]).tolist()


def test_a_note_sounds_in_the_quarters_of_its_time():
    assert sounds(note(1.3, 1.6)) == [5, 6]


def test_a_note_before_or_after_the_crop_is_not_in_it():
    assert not values("notes", note(-1.0, -0.1)).any()
    assert not values("notes", note(4.1, 5.0)).any()
    assert sounds(note(-3.0, 9.0)) == list(range(16))


def test_a_crop_begins_later_and_stretched():
    assert sounds(note(1.3, 1.6), start=WIDTH) == [1, 2]
    assert sounds(note(1.3, 1.6), scale=2.0) == [10, 11, 12]


def test_stretching_is_that_of_the_augmentation():
    frame, scale, start = 100, 1.13, 7  # the source frame (start + w + 1/2) / scale - 1/2
    position = crop(start=start, scale=scale).columns(np.array([frame * FRAME_S]), WIDTH)
    assert (start + position + 0.0) / scale - 0.5 == pytest.approx(frame)


def test_pitch_shift_moves_notes_keys_and_chords():
    assert sounds(note(0, 0.9), pitch=62, semitones=1.8) == [0, 1, 2, 3]
    known = Score.of({"key": "B:min", "chords": [[0, 9, "A#:7"]]})
    assert values("key", known, semitones=2) == 1 * 2 + 1
    wanted = (10 + 2) % 12 * len(QUALITIES) + QUALITIES.index("7")
    assert values("chord", known, semitones=2).tolist() == [wanted] * 4


@pytest.mark.parametrize(("shift", "known"), [(-0.3, 1), (0.4, 0), (0.5, 0), (1.6, 0), (1.7, 1)])
def test_pitches_half_way_between_two_semitones_have_no_names(shift, known):
    notes = [[0, 4 * PATCH_S, 60, 0], [0, 1, 36, DRUMS]]
    music = {"notes": notes, "chords": [[0, 9, "C:maj"]], "key": "C:maj", "beats": [[0.1, 1]]}
    score, where = Score.of(music | {"bpm": 120, "metre": 4}), crop(semitones=shift)
    found = {name: target.values(score, where) for name, target in NOTE_TARGETS.items()}
    unknown = {name for name, target in found.items() if target is None}
    assert unknown == (set() if known else {"notes", "chord", "key"})


def test_a_pitch_outside_of_a_piano_sounds_nowhere():
    assert not values("notes", note(0, 1, pitch=12)).any()
    assert not values("notes", note(0, 1, pitch=110)).any()
    assert values("note_starts", note(0, 1, pitch=12)).sum() == 1


def test_starts_are_in_eighths_and_without_drums():
    score = Score.of(
        {"notes": [[0.4 * PATCH_S, PATCH_S, 60, 0], [0.9 * PATCH_S, PATCH_S, 36, DRUMS]]}
    )
    assert np.argwhere(values("note_starts", score)).tolist() == [[0, 3]]


def test_drums_are_told_apart_by_kind():
    score = Score.of(
        {"notes": [[0, 1, 36, DRUMS], [PATCH_S, 2, 42, DRUMS], [0, 1, 36, 0], [0, 1, 75, DRUMS]]}
    )
    found = values("drum_hits", score).reshape(4, 8, 6)
    assert np.argwhere(found).tolist() == [[0, 0, 0], [0, 0, 5], [1, 0, 2]]


def test_instruments_are_families_and_drums():
    score = Score.of({"notes": [[0, 0.5, 60, 0], [0, 0.5, 60, 41], [0, 0.1, 36, DRUMS]]})
    assert np.flatnonzero(values("instruments", score)[0]).tolist() == [0, 5, 16]
    assert not values("instruments", score)[1:].any()


def test_beats_and_first_beats():
    score = Score.of({"beats": [[0.5 * PATCH_S, 1], [1.0 * PATCH_S, 2]]})
    found = values("beats", score)
    assert np.argwhere(found).tolist() == [[0, 4], [0, 12], [1, 0]]


def test_a_chord_is_that_in_the_middle_of_the_patch():
    chords = [[0, 0.6 * PATCH_S, "C:maj"], [0.6 * PATCH_S, 1.2 * PATCH_S, "Bb:min"]]
    found = values("chord", Score.of({"chords": chords}))
    assert found.tolist() == [0, UNKNOWN, UNKNOWN, UNKNOWN]
    later = values("chord", Score.of({"chords": chords}), start=0.3 * WIDTH)
    assert later.tolist() == [10 * len(QUALITIES) + 1, UNKNOWN, UNKNOWN, UNKNOWN]


def test_quality_and_mode_do_not_depend_on_root_and_tonic():
    for shift in (0, 3):
        known = Score.of({"key": "A:min", "chords": [[0, 2 * PATCH_S, "Eb:dim"]]})
        quality = values("chord_quality", known, semitones=shift)
        assert quality.tolist() == [QUALITIES.index("dim")] * 2 + [UNKNOWN] * 2
        assert values("key_mode", known, semitones=shift) == 1


def test_tempo_is_that_after_stretching():
    plain, slower = (values("bpm", Score.of({"bpm": 120}), scale=scale) for scale in (1.0, 1.2))
    assert plain == values("bpm", Score.of({"bpm": 144}), scale=1.2)
    assert plain - slower == pytest.approx(math.log(1.2) / math.log(1.05), abs=1)


@pytest.mark.parametrize(("shift", "thirds"), [(0, 33), (2, 3), (-0.35, 32), (0.4, 34)])
def test_a_known_tonic_is_in_thirds_of_a_semitone_from_c(shift, thirds):
    assert values("known_tonic", Score.of({"key": "B:min"}), semitones=shift) == thirds


@pytest.mark.parametrize(("bpm", "scale", "lag_s"), [(120, 1.0, 0.5), (120, 1.3, 0.65), (60, 1, 1)])
def test_a_known_tempo_is_the_lag_between_beats_after_stretching(bpm, scale, lag_s):
    place = values("known_tempo", Score.of({"bpm": bpm}), scale=scale)
    first, last = LAGS_S
    found_s = first * (last / first) ** (place / (LAGS - 1))
    assert found_s == pytest.approx(lag_s, rel=0.022)  # half a bin


@pytest.mark.parametrize("bpm", [19, 310])
def test_a_known_tempo_outside_of_the_tempogram_is_unknown(bpm):
    assert NOTE_TARGETS["known_tempo"].values(Score.of({"bpm": bpm}), crop()) is None


def test_a_tempo_outside_of_the_classes_is_unknown():
    assert NOTE_TARGETS["bpm"].values(Score.of({"bpm": 300}), crop()) is None
    assert values("bpm", Score.of({"bpm": 300}), scale=1.4) >= 0


@pytest.mark.parametrize("name", sorted(NOTE_TARGETS))
def test_what_is_not_known_is_no_target(name):
    assert NOTE_TARGETS[name].values(Score.of({}), crop()) is None


def test_silence_is_known():
    for name in ("notes", "note_starts", "drum_hits", "instruments"):
        assert not values(name, EMPTY).any()


# --- files ---


def labels(folder, *contents, training=None) -> NoteLabels:
    clips = [Clip(f"a/{number}.ogg", f"{number}.ogg") for number in range(len(contents))]
    (folder / "a").mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        if content is not None:
            (folder / "a" / f"{number}.json").write_text(content)
    return NoteLabels(
        folder,
        clips,
        frame_s=FRAME_S,
        patch_frames=WIDTH,
        training=range(len(contents)) if training is None else training,
    )


def test_targets_of_a_clip_without_a_file_are_unknown(tmp_path):
    found = labels(tmp_path, json.dumps({"notes": [[0, 9, 60, 0]]}), None)
    target = found.targets(
        "notes", [1, 0], starts=[0, 0], scale=[1, 1], semitones=[0, 0], n_patches=3
    )
    assert (target[0] == UNKNOWN).all()
    assert target[1].sum() == 12


def test_base_rates_are_of_known_training_clips(tmp_path):
    always, never = (json.dumps({"notes": rows}) for rows in ([[0, 99, 60, 0]], []))
    rates = labels(tmp_path, always, never, None).base_rates("instruments")
    assert rates[0] == pytest.approx(0.5, abs=0.02)
    assert rates[1] < 0.02
    only = labels(tmp_path, always, never, None, training=[0]).base_rates("instruments")
    assert only[0] > 0.95


def test_no_file_at_all_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"0\.json"):
        labels(tmp_path, None)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[1, 2]",
        json.dumps({"notes": [[1, 2, 3]]}),
        json.dumps({"notes": [[0, 1, 60, "drum"]]}),
        '{"notes": [[0, NaN, 60, 0]]}',
        json.dumps({"key": "H:maj"}),
        json.dumps({"chords": [[0, 1, "C:minmaj7"]]}),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content):
    with pytest.raises(RequestError, match=r"0\.json"):
        labels(tmp_path, content)


# --- losses ---

NAMES = tuple(name for name, target in NOTE_TARGETS.items() if not target.estimator)
ESTIMATED = ("known_tonic", "known_tempo")
KNOWN = {
    "notes": [[0, 2, 60, 0], [1, 4, 64, 40], [0.5, 0.6, 36, DRUMS]],
    "beats": [[0.5 * number, number % 4 + 1] for number in range(12)],
    "chords": [[0, 9, "C:maj"]],
    "key": "C:maj",
    "bpm": 120,
    "metre": 4,
}


def learner_of(folder, *contents) -> Objectives:
    config = update(
        Config(),
        {"model": TINY, "pretrain": {"objectives": ["pixels", *NAMES], "note_labels": "labels"}},
    )
    found = labels(folder, *contents)
    return Objectives(Patchifier(config), config, [(music(8, 6)[..., :64, :], None)], None, found)


def test_an_untrained_head_has_the_loss_of_base_rates(tmp_path):
    always = json.dumps(KNOWN | {"notes": [[0, 99, 60, 0]]})
    learner = learner_of(tmp_path, always, json.dumps({"notes": []})).eval()
    for head in NAMES:
        learner.notes.heads[head].weight.data.zero_()
        if NOTE_TARGETS[head].kind == "multiclass":
            learner.notes.heads[head].bias.data.zero_()
    errors = learner.errors(batch_of(music(2, 6)[..., :64, :], half(2, 6)))
    for name in ("key", "key_mode", "bpm", "beats_per_bar", "chord", "chord_quality"):
        assert float(errors[name].detach()) == pytest.approx(1.0), name
    rates = np.array([0.5, *[1 / 52] * 16])  # of the piano, and of what never sounds
    entropy = -(rates * np.log(rates) + (1 - rates) * np.log(1 - rates))
    wanted = (math.log(2) - 16 * math.log(1 - 1 / 52)) / entropy.sum()
    assert float(errors["instruments"].detach()) == pytest.approx(wanted, abs=1e-4)


def test_a_clip_without_notes_changes_no_loss_and_gets_no_gradient(tmp_path):
    learner = learner_of(tmp_path, json.dumps(KNOWN), None).eval()
    shown, mask = music(2, 6)[..., :64, :], half(2, 6)
    both = learner.errors(batch_of(shown, mask))
    alone = learner.errors(batch_of(shown[:1], mask[:1]))
    for name in NAMES:
        assert torch.allclose(both[name], alone[name], atol=1e-5), name
    only = learner.errors(batch_of(shown[1:], mask[1:], clips=torch.tensor([1])))
    assert all(float(only[name].detach()) == 0 for name in NAMES)


def test_validation_counts_labelled_clips_alone(tmp_path):
    learner = learner_of(tmp_path, json.dumps(KNOWN), None).eval()
    shown, mask = music(2, 6)[..., :64, :], half(2, 6)
    known = batch_of(shown[:1], mask[:1])
    unknown = batch_of(shown[1:], mask[1:], clips=torch.tensor([1]))
    with torch.no_grad():
        alone, both = learner.figures([known]), learner.figures([known, unknown])
    for name in NAMES:
        assert both[f"{name}_error"] == alone[f"{name}_error"]
    assert both["pixels_error"] != alone["pixels_error"]


def test_notes_are_learnt(tmp_path):
    learner = learner_of(tmp_path, json.dumps(KNOWN), json.dumps({"notes": [], "key": "A:min"}))
    batch = batch_of(music(2, 6)[..., :64, :], half(2, 6))
    optimiser = torch.optim.Adam(learner.parameters(), lr=3e-3)
    first = learner.errors(batch)
    for _ in range(40):
        optimiser.zero_grad()
        torch.stack([learner.errors(batch)[name] for name in NAMES]).sum().backward()
        optimiser.step()
    last = learner.errors(batch)
    for name in NAMES:
        assert float(last[name].detach()) < 0.7 * float(first[name].detach()), name


def estimating(folder, *contents) -> Objectives:
    model = TINY | {"estimators": ["tonic", "tempo"]}
    config = update(
        Config(),
        {
            "spectrogram": {"n_pitch_bands": 216},
            "model": model,
            "pretrain": {"objectives": list(ESTIMATED), "note_labels": "labels"},
        },
    )
    found = labels(folder, *contents)
    return Objectives(Patchifier(config), config, [(music(8, 6), None)], None, found)


def test_estimators_have_the_cross_entropy_of_what_is_known(tmp_path):
    learner = estimating(tmp_path, json.dumps(KNOWN), None).eval()
    shown, mask = music(2, 6), half(2, 6)
    errors = learner.errors(batch_of(shown, mask))
    assert tuple(errors) == ESTIMATED
    for name, place in (("tonic", 0), ("tempo", values("known_tempo", Score.of({"bpm": 120})))):
        estimator = learner.model.estimators[name]
        described = DESCRIPTORS[estimator.descriptor].values(
            shown[:1, :, 0], torch.ones(1, 6, dtype=torch.bool), learner.config
        )
        wanted = -math.log(float(estimator(described)[0, int(place)].detach()) + LEAST_PROBABILITY)
        error = float(errors[f"known_{name}"].detach())
        assert error == pytest.approx(wanted / math.log(estimator.bins), rel=1e-4)


def test_a_clip_of_which_nothing_is_known_moves_no_estimator(tmp_path):
    learner = estimating(tmp_path, json.dumps(KNOWN), None)
    batch = batch_of(music(1, 6), half(1, 6), clips=torch.tensor([1]))
    torch.stack(list(learner.errors(batch).values())).sum().backward()
    gradients = [each.grad for each in learner.model.estimators.parameters()]
    assert all(each is not None and not each.any() for each in gradients)


def test_estimators_learn_what_is_known_and_nothing_else_moves(tmp_path):
    learner = estimating(tmp_path, json.dumps(KNOWN), json.dumps({"key": "F#:min", "bpm": 75}))
    batch = batch_of(music(2, 6), half(2, 6))
    optimiser = torch.optim.Adam(learner.model.estimators.parameters(), lr=3e-3)
    first = learner.errors(batch)
    for _ in range(60):
        optimiser.zero_grad()
        torch.stack(list(learner.errors(batch).values())).sum().backward()
        optimiser.step()
    last = learner.errors(batch)
    for name in ESTIMATED:
        assert float(last[name].detach()) < 0.7 * float(first[name].detach()), name
    others = [name for name, each in learner.model.named_parameters() if each.grad is not None]
    assert others
    assert all(name.startswith("estimators.") for name in others)


@pytest.mark.parametrize(
    "changes",
    [
        {"objectives": ["pixels", "notes"]},
        {"note_labels": "labels"},
        {
            "objectives": ["pixels", "notes"],
            "note_labels": "labels",
            "stage_two_patches": "whole",
        },
    ],
)
def test_targets_and_folder_need_each_other(changes):
    config = update(Config(), {"model": TINY, "pretrain": changes})
    with pytest.raises(RequestError, match="note_labels"):
        Objectives(Patchifier(config), config, [(music(8, 6)[..., :64, :], None)])
