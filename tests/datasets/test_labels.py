"""Frame-wise labels: each format, each way it can be wrong, and the task of a table of them."""

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchifier import datasets
from patchifier.config import RequestError
from patchifier.datasets import labels, manifest
from patchifier.datasets.labels import Annotation
from patchifier.tasks import Task

CHORDS = Task("per-frame", labels.CHORDS, "chords")
BOUNDARIES = Task("per-frame", ("boundary",), "boundaries")
BEATS = Task("per-frame", ("beat",), "beats")
DOWNBEATS = Task("per-frame", ("beat", "downbeat"), "beats")

# The schema of MARBLE's two per-frame sets; figures shortened.
MARBLE_BEATS = {
    "audio_path": "data/GTZAN/genres/blues/blues.00029.wav",
    "label": {
        "beat": [0.2, 0.428173, 0.898377, 1.362776, 2.29738],
        "downbeat": [0.428173, 2.29738],
        "tempo": 126.46,
        "meter": "4/4",
    },
    "num_samples": 661794,
}
END = 1.2562470000000001  # 1e-16 after the start of the chord that follows
MARBLE_CHORDS = {
    "audio_path": "data/Chords1217/audio/x.flac",
    "label": [
        {"start_time": 0.0, "end_time": END, "chord_str": "N"},
        {"start_time": 1.256247, "end_time": 21.840737000000004, "chord_str": "E:maj"},
        {"start_time": 21.840737, "end_time": 23.0, "chord_str": "D:maj/2"},
    ],
    "duration": 119.013875,
}


def read(tmp_path, name, text, metric=""):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return labels.read(path, metric)


def table(tmp_path, *rows, name="t.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return datasets.load(path)


def jams(*annotations):
    found = [{"namespace": namespace, "data": data} for namespace, data in annotations]
    return json.dumps({"annotations": found, "file_metadata": {}})


def seen(time, duration, value):
    return {"time": time, "duration": duration, "value": value, "confidence": None}


# --- files ---


@pytest.mark.parametrize(
    "text",
    [
        "0.5\t1\n1.0\t2\n1.5\t\n",
        "# time place\n\n0.5 1\n  1.0   2.0 \n1.5\n",
        "\ufeff0.5 1\r\n1.0 2\r\n1.5\r\n",
    ],
)
def test_beats_are_read_with_and_without_their_place_in_the_bar(text, tmp_path):
    rows = [[0.5, 0.5, "1"], [1.0, 1.0, "2"], [1.5, 1.5, ""]]
    assert read(tmp_path, "a.beats", text) == Annotation("beats", rows)


def test_intervals_are_read_with_labels_of_several_words(tmp_path):
    found = read(tmp_path, "ü.LAB", "0 1.5 verse one\n1.5\t3\tRefrain é\n")
    assert found == Annotation("intervals", [[0.0, 1.5, "verse one"], [1.5, 3.0, "Refrain é"]])


def test_overlap_by_rounding_is_closed_and_a_gap_is_left(tmp_path):
    found = read(tmp_path, "a.lab", "0 1.0000001 C\n1 2 G:min\n2.5 3 N\n")
    assert found.rows == [[0.0, 1.0000001, "C"], [1.0000001, 2.0, "G:min"], [2.5, 3.0, "N"]]


def test_files_without_a_line_have_no_rows(tmp_path):
    assert read(tmp_path, "a.beats", "\n# nothing\n").rows == []
    assert read(tmp_path, "a.lab", "").rows == []


NAMED = [{"position": 1, "measure": 3}, {"position": 2}]
COLUMNS = {"time": [0.5, 1.0], "duration": [0, 0], "value": [4, 1], "confidence": [1, 1]}


@pytest.mark.parametrize(
    ("namespace", "values", "expected"),
    [
        ("beat", [1, 2.0, None, math.nan], ["1", "2", "", ""]),
        ("beat_position", NAMED, ["1", "2"]),
        ("beat", COLUMNS, ["4", "1"]),
    ],
)
def test_beats_of_jams(namespace, values, expected, tmp_path):
    data = values
    if isinstance(values, list):
        data = [seen(0.5 * number, 0, value) for number, value in enumerate(values, 1)]
    found = read(tmp_path, "a.jams", jams((namespace, data)))
    rows = [[0.5 * number, 0.5 * number, place] for number, place in enumerate(expected, 1)]
    assert found == Annotation("beats", rows)


@pytest.mark.parametrize("namespace", ["chord", "chord_harte"])
def test_chords_of_jams(namespace, tmp_path):
    data = [seen(0.0, 1.5, "C:min7/b3"), seen(1.5, 0.5, "N")]
    found = read(tmp_path, "a.jams", jams((namespace, data)))
    assert found == Annotation("chords", [[0.0, 1.5, "C:min7/b3"], [1.5, 2.0, "N"]])


@pytest.mark.parametrize("namespace", ["segment_open", "segment_salami_function"])
def test_segments_of_jams_are_never_taken_for_chords(namespace, tmp_path):
    text = jams((namespace, [seen(0.0, 1.5, "A"), seen(1.5, 0.5, "B")]))
    assert read(tmp_path, "a.jams", text).kind == "boundaries"


def test_of_several_kinds_in_a_jams_the_metric_says_which_and_the_first_annotator_counts(tmp_path):
    beats = [("beat", [seen(time, 0, 1)]) for time in (1, 2)]
    text = jams(("tag_open", []), *beats, ("segment_open", [seen(0, 4, "a")]))
    assert read(tmp_path, "a.jams", text, "beats").rows == [[1.0, 1.0, "1"]]
    assert read(tmp_path, "a.jams", text, "boundaries").rows == [[0.0, 4.0, "a"]]
    said = r"a\.jams: holds beats, boundaries, expected one of them: a column 'metric'"
    with pytest.raises(RequestError, match=said):
        read(tmp_path, "a.jams", text)
    with pytest.raises(RequestError, match=r"holds beats, boundaries, expected chords"):
        read(tmp_path, "a.jams", text, "chords")


SILENT = {"time": 0, "value": "C"}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.beats", "0.5 1\nsoon 2\n", r"a\.beats, line 2: time is 'soon', expected seconds"),
        ("a.beats", "0.5 1 x\n", r"line 1: has 3 fields, expected 'time' or 'time position'"),
        ("a.beats", "0.5 1.5\n", r"line 1: position in the bar is '1\.5'"),
        ("a.beats", "0.5 one\n", r"line 1: position in the bar is 'one'"),
        ("a.beats", "# first\n1\n0.5\n", r"line 3: 0\.5 s comes before"),
        ("a.beats", "nan\n", r"line 1: time is 'nan'"),
        ("a.beats", "inf\n", r"line 1: time is 'inf'"),
        ("a.lab", "0 1 C\n1 2\n", r"a\.lab, line 2: has 2 fields, expected 'start end label'"),
        ("a.lab", "0 1 C\n0.5 2 G\n", r"line 2: starts at 0\.5 s, before 1 s"),
        ("a.lab", "0 1 C\n1 1 G\n", r"line 2: runs from 1 to 1 s"),
        ("a.lab", "2 1 C\n", r"line 1: runs from 2 to 1 s"),
        ("a.lab", "-1 1 C\n", r"line 1: starts at -1 s"),
        ("a.lab", "0 x C\n", r"line 1: time is 'x'"),
        ("a.jams", "{", r"a\.jams: is not JSON"),
        ("a.jams", "[]", r"no list of 'annotations'"),
        ("a.jams", '{"annotations": {}}', r"no list of 'annotations'"),
        ("a.jams", '{"annotations": [1]}', r"no list of 'annotations'"),
        ("a.jams", jams(("tag_open", [])), r"holds no beats, chords or segments"),
        ("a.jams", jams(("beat", None)), r"annotation 'beat' has no data"),
        (
            "a.jams",
            jams(("beat", [seen(0, 0, 1), {"value": 1}])),
            r"beat, observation 2: has no time",
        ),
        ("a.jams", jams(("beat", [3])), r"a\.jams, beat, observation 1: has no time"),
        ("a.jams", jams(("chord", [SILENT])), r"chord, observation 1: time is None"),
        ("a.jams", jams(("chord", [seen(0, 1, 3)])), r"observation 1: label is 3, expected text"),
    ],
)
def test_bad_file_is_refused_with_its_line(name, text, reason, tmp_path):
    with pytest.raises(RequestError, match=reason):
        read(tmp_path, name, text)


@pytest.mark.parametrize("name", ["x\0.beats", "\ud800.lab", "x" * 5000 + ".jams"])
def test_name_that_no_label_file_can_have_is_refused(name, tmp_path):
    with pytest.raises(RequestError, match="labels cannot be read") as caught:
        table(tmp_path, {"path": "a.wav", "label": name})
    str(caught.value).encode()  # can be printed


def test_path_longer_than_a_name_can_be_is_one_of_a_file_that_is_missing(tmp_path):
    assert table(tmp_path, {"path": "x" * 5000, "label": "a"}).clips[0].target == "a"


def test_file_that_is_missing_or_not_utf8_is_refused_by_name(tmp_path):
    with pytest.raises(RequestError, match=r"none\.lab: labels cannot be read"):
        labels.read(tmp_path / "none.lab")
    (tmp_path / "old.lab").write_bytes("0 1 música\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"old\.lab: is not UTF-8"):
        labels.read(tmp_path / "old.lab")


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60),
    st.sampled_from(labels.SUFFIXES),
)
def test_any_text_is_read_or_refused(tmp_path_factory, text, suffix):
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_text(text, encoding="utf-8")
    reason, rows = str(path), []
    try:
        rows = labels.read(path).rows
    except RequestError as error:
        reason = str(error)
    assert str(path) in reason
    for start, end, _ in rows:
        assert 0 <= end - start < math.inf


# --- chords ---


A_CHORD = "N X C Cb F##:min G:maj7/3 A:(1,3,5) E:min(9)/b3 C/5 D:sus4(b7,9) C:maj(*5)/3 B:hdim7"
NO_CHORD = "c H Cmaj C: C:major C:6 C#b verse C:maj/0 C:maj() A' N:maj C:(14)"


@pytest.mark.parametrize("label", [*A_CHORD.split(), "C:9(#11)", "A:min/13"])
def test_what_is_a_chord_here_is_one_for_mir_eval(label):
    from mir_eval import chord

    assert labels.CHORD.fullmatch(label)
    chord.encode(label)


@pytest.mark.parametrize("label", [*NO_CHORD.split(), "", "C maj", "C:maj\n"])
def test_what_is_no_chord_here_is_none_for_mir_eval(label):
    from mir_eval import chord

    assert not labels.CHORD.fullmatch(label)
    if label != "C:maj\n":  # mir_eval's own pattern lets a line end pass
        with pytest.raises(chord.InvalidChordException):
            chord.encode(label)


def test_names_of_the_25_classes_are_in_mir_evals_order():
    from mir_eval import chord

    assert len(set(labels.CHORDS)) == 25
    assert [chord.encode(label)[0] for label in labels.CHORDS] == [-1, *range(12), *range(12)]


# --- part of a file ---


def test_part_of_a_file_has_its_own_clock():
    events = [[1.0, 1.0, "1"], [2.0, 2.0, "2"], [3.0, 3.0, "3"]]
    assert labels.within(events, 2.0, 3.0) == [[0.0, 0.0, "2"]]
    intervals = [[0.0, 2.0, "a"], [2.0, 4.0, "b"], [4.0, 9.0, "c"]]
    assert labels.within(intervals, 1.5, 5.0) == [[0.0, 0.5, "a"], [0.5, 2.5, "b"], [2.5, 3.5, "c"]]
    assert labels.within(intervals, 2.0, 4.0) == [[0.0, 2.0, "b"]]
    assert labels.within([[-0.1, -0.1, "1"], *events]) == events


# --- tables ---


def test_marbles_beats_are_read(tmp_path):
    found = table(tmp_path, MARBLE_BEATS, name="GTZANBeatTracking.train.jsonl")
    (clip,) = found.clips
    times, places = MARBLE_BEATS["label"]["beat"], ["", "1", "2", "3", "1"]
    assert clip.target == [[time, time, place] for time, place in zip(times, places, strict=True)]
    info = [clip.info[name] for name in ("tempo", "meter", "num_samples")]
    assert (clip.split, info) == ("train", ["126.46", "4/4", "661794"])
    assert found.task == DOWNBEATS


def test_marbles_downbeat_is_the_beat_that_is_near_or_a_beat_of_its_own(tmp_path):
    label = {"beat": [1.0, 2.0], "downbeat": [1.05, 1.5]}
    (clip,) = table(tmp_path, {"path": "a.wav", "label": label}).clips
    assert clip.target == [[1.0, 1.0, "1"], [1.5, 1.5, "1"], [2.0, 2.0, "2"]]


def test_marbles_clip_without_a_beat_has_an_empty_list(tmp_path):
    empty = {"path": "a.wav", "label": {"beat": [], "downbeat": []}}
    found = table(tmp_path, empty, {"path": "b.wav", "label": {"beat": [1.0]}})
    assert [clip.target for clip in found.clips] == [[], [[1.0, 1.0, ""]]]
    assert found.task == BEATS


def test_marbles_chords_are_read(tmp_path):
    found = table(tmp_path, MARBLE_CHORDS)
    times = [0.0, END, 21.840737000000004, 23.0]
    names = ["N", "E:maj", "D:maj/2"]
    assert found.clips[0].target == [
        list(row) for row in zip(times, times[1:], names, strict=False)
    ]
    assert found.task == CHORDS


def test_marbles_three_files_are_one_data_set(tmp_path):
    paths = [tmp_path / f"GTZANBeatTracking.{part}.jsonl" for part in ("train", "val", "test")]
    for path in paths:
        table(tmp_path, {**MARBLE_BEATS, "audio_path": f"{path.stem}.wav"}, name=path.name)
    found = manifest.load_all(paths, "gtzan-beats")
    assert [clip.split for clip in found.clips] == ["train", "valid", "test"]
    assert (found.name, found.task) == ("gtzan-beats", DOWNBEATS)


@pytest.mark.parametrize(
    ("label", "target", "task"),
    [
        ([[0.5], [1.0]], [[0.5, 0.5, ""], [1.0, 1.0, ""]], BEATS),
        ([[0.5, 4], [1.0, 1]], [[0.5, 0.5, "4"], [1.0, 1.0, "1"]], DOWNBEATS),
        ([[0.5, 4], [1.0]], [[0.5, 0.5, "4"], [1.0, 1.0, ""]], BEATS),
        ([[0, 1, "C:min"], [1, 2, "G"]], [[0.0, 1.0, "C:min"], [1.0, 2.0, "G"]], CHORDS),
        ([[0, 1, "verse"], [1, 2, "C"]], [[0.0, 1.0, "verse"], [1.0, 2.0, "C"]], BOUNDARIES),
        ([{"start_s": 0, "end_s": 1, "label": "N"}], [[0.0, 1.0, "N"]], CHORDS),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_rows_in_a_cell_are_read(label, target, task, as_text, tmp_path):
    found = table(tmp_path, {"path": "a.wav", "label": json.dumps(label) if as_text else label})
    assert (found.clips[0].target, found.task) == (target, task)


def test_label_files_are_found_where_audio_is(tmp_path):
    for folder in ("audio", "beats", "lists/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "audio/a.wav").touch()
    (tmp_path / "beats/a.beats").write_text("0.5 1\n1.5 2\n2.5 1\n", encoding="utf-8")
    text = "path,label,start_s,end_s\naudio/a.wav,beats/a.beats,1,2.5\n"
    (tmp_path / "lists/deep/t.csv").write_text(text, encoding="utf-8")
    found = datasets.load(tmp_path / "lists/deep/t.csv")
    assert Path(found.clips[0].path).samefile(tmp_path / "audio/a.wav")
    assert found.clips[0].target == [[0.5, 0.5, "2"]]
    assert found.task == BEATS  # the only position 1 left lies at the very end


def test_clip_without_labels_stays_without(tmp_path):
    empty = {"path": "c.wav", "label": []}
    found = table(tmp_path, {"path": "a.wav", "label": [[0.5]]}, {"path": "b.wav"}, empty)
    assert [clip.target for clip in found.clips] == [[[0.5, 0.5, ""]], None, []]


def test_metric_says_what_letters_are(tmp_path):
    rows = [{"path": "a.wav", "label": [[0, 1, "A"], [1, 2, "B"]]}]
    rows += [{"path": "b.wav", "label": [[0, 1, "C"]]}]
    said = (
        r"row 1: labels are single letters, which may be chords or segments. Add a column 'metric'"
    )
    with pytest.raises(RequestError, match=said):
        table(tmp_path, *rows)
    for metric, name, task in (("chords", "A:min", CHORDS), ("boundaries", "A2", BOUNDARIES)):
        assert table(tmp_path, *[{**row, "metric": metric} for row in rows]).task == task
        assert table(tmp_path, *rows, {"path": "c.wav", "label": [[0, 1, name]]}).task == task


def test_metric_of_another_kind_of_task_is_taken_too(tmp_path):
    rows = [{"path": "a.wav", "label": "C major", "metric": "key_score"}]
    rows += [{"path": "b.wav", "label": "A minor"}]
    assert table(tmp_path, *rows).task == Task("one-of", ("A minor", "C major"), "key_score")


def cell(label, metric=""):
    return {"label": label, **({"metric": metric} if metric else {})}


BEAT, CHORD, OTHER = [[0.5]], [[0, 1, "C:maj"]], [[0, 1, "Cmaj"]]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([cell(BEAT), cell(CHORD)], r"mixture: .*row 1 has beats, .*row 2 has chords"),
        ([cell(CHORD), cell(OTHER)], r"row 1 has chords, .*row 2 has boundaries"),
        (
            [cell(BEAT), cell("rock")],
            r"row 2: label is 'rock', expected frame-wise labels as in .*row 1",
        ),
        ([cell("rock"), cell(BEAT)], r"row 1: label is 'rock'"),
        ([cell(OTHER, "chords")], r"row 1: label 'Cmaj' at 0 s is no chord"),
        ([cell(CHORD, "beats")], r"row 1: labels are intervals, expected events for beats"),
        ([cell(BEAT, "chords")], r"row 1: labels are events, expected intervals for chords"),
        (
            [cell(BEAT, "accuracy")],
            r"row 1: metric is 'accuracy', expected beats, chords, boundaries",
        ),
        (
            [cell(BEAT, "beats"), cell(BEAT, "chords")],
            r"row 2: metric is 'chords', but 'beats' in .*row 1",
        ),
        ([cell("rock", "beats")], r"row 1: label is 'rock', expected frame-wise labels"),
        ([cell([[0.5], [0, 1, "C"]])], r"row 1: labels have \[1, 3\] fields"),
        ([cell([[]])], r"fields"),
        ([cell([[0.5, 1], "x"])], r"row 1: label is "),
        ([cell([[0.5, "x"]])], r"row 1, label 1: position in the bar is 'x'"),
        (
            [cell([{"start_time": 0, "end_time": 1}])],
            r"row 1, label 1: has start_time, end_time, expected",
        ),
        (
            [cell({"beats": [1]})],
            r"row 1: label is an object without lists of times under 'beat'",
        ),
        ([cell({"beat": [1, 0.5]})], r"row 1, beat 2: 0\.5 s comes before"),
        ([cell({"beat": [1], "downbeat": ["x"]})], r"row 1, downbeat 1: time is 'x'"),
        ([cell({"beat": []})], r"empty for every clip"),
        ([cell("none.lab")], r"none\.lab: labels cannot be read"),
    ],
)
def test_bad_labels_are_refused_with_their_row(rows, reason, tmp_path):
    with pytest.raises(RequestError, match=reason):
        table(tmp_path, *[{"path": f"{number}.wav", **row} for number, row in enumerate(rows)])


def test_bad_chord_of_a_jams_is_refused(tmp_path):
    (tmp_path / "a.jams").write_text(jams(("chord", [seen(0, 1, "Cmaj")])), encoding="utf-8")
    with pytest.raises(RequestError, match="label 'Cmaj' at 0 s is no chord"):
        table(tmp_path, {"path": "a.wav", "label": "a.jams"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_or_a_device_is_neither_a_manifest_nor_a_label_file(tmp_path):
    makers = {"pipe": os.mkfifo, "device": lambda path: os.symlink("/dev/zero", path)}
    for name, make in makers.items():
        for suffix in (".beats", ".lab", ".jams"):
            make(tmp_path / f"{name}{suffix}")
            (tmp_path / "clips.csv").write_text(f"path,target\na.wav,{name}{suffix}\n")
            with pytest.raises(RequestError, match="not a regular file"):
                manifest.load(tmp_path / "clips.csv")
        for suffix in manifest.SUFFIXES:
            make(tmp_path / f"{name}{suffix}")
            with pytest.raises(RequestError, match="not a regular file"):
                manifest.load(tmp_path / f"{name}{suffix}")
