"""Manifests: how labels become targets and the task, and how parts of one file are named."""

import json
import unicodedata
from pathlib import Path

import pytest

from patchifier import datasets
from patchifier.config import RequestError
from patchifier.datasets import Dataset
from patchifier.tasks import Task


def csv_of(folder: Path, *lines: str, name: str = "t.csv") -> Dataset:
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return datasets.load(folder / name)


def jsonl_of(folder: Path, *labels: object, **columns: object) -> Dataset:
    rows = [
        {"path": f"{number}.wav", "label": label, **columns} for number, label in enumerate(labels)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.load(folder / "t.jsonl")


def targets(found: Dataset) -> list:
    return [clip.target for clip in found.clips]


# --- the task ---


@pytest.mark.parametrize(
    ("column", "stated", "cells", "expected", "task"),
    [
        ("metric", "accuracy", ["0", "1", "02"], ["0", "1", "02"], ("one-of", "accuracy")),
        ("task", "multiclass", ["0", "1", "1.5"], ["0", "1", "1.5"], ("one-of", "accuracy")),
        ("task", "multiclass", ["rock|pop", "x"], ["rock|pop", "x"], ("one-of", "accuracy")),
        ("metric", "roc_auc", ["80|90", "70"], [["80", "90"], ["70"]], ("many-of", "roc_auc")),
        ("task", "multilabel", ["rock", "pop"], [["rock"], ["pop"]], ("many-of", "roc_auc")),
        ("task", "regression", ["1", "2.5"], [1.0, 2.5], ("numbers", "r2")),
        ("metric", "r2", ["1|2", "3|4"], [[1.0, 2.0], [3.0, 4.0]], ("numbers", "r2")),
    ],
)
def test_a_stated_task_or_metric_decides_what_labels_are(
    column: str, stated: str, cells: list, expected: list, task: tuple, tmp_path: Path
) -> None:
    rows = [f"{number}.wav,{cell},{stated}" for number, cell in enumerate(cells)]
    found = csv_of(tmp_path, f"path,label,{column}", *rows)
    assert targets(found) == expected
    assert found.task is not None
    assert (found.task.kind, found.task.metric) == task
    assert found.reason == f"column {column!r} says so"


def test_class_numbers_in_jsonl_are_classes_where_the_metric_is_accuracy(tmp_path: Path) -> None:
    found = jsonl_of(tmp_path, 0, 1, 2, metric="accuracy")
    assert targets(found) == ["0", "1", "2"]
    assert found.task == Task("one-of", ("0", "1", "2"))


@pytest.mark.parametrize(
    ("labels", "expected", "kind"),
    [
        (["3", "4"], ["3", "4"], "one-of"),
        ([True, False], ["true", "false"], "one-of"),
        (["a|b", "c"], ["a|b", "c"], "one-of"),
        (['["a"]', "c"], ['["a"]', "c"], "one-of"),
        ([["3"], ["4", "5"]], [["3"], ["4", "5"]], "many-of"),
        ([3, 4.5], [3, 4.5], "numbers"),
    ],
)
def test_strings_and_booleans_in_jsonl_are_names(
    labels: list, expected: list, kind: str, tmp_path: Path
) -> None:
    found = jsonl_of(tmp_path, *labels)
    assert targets(found) == expected
    assert found.task is not None
    assert found.task.kind == kind


@pytest.mark.parametrize(
    ("cells", "word"),
    [(["rock", "pop"], "name"), (["rock|pop", "pop"], "names"), (["1", "2"], "number")],
)
def test_the_reason_of_an_inferred_task_is_what_the_labels_are(
    cells: list, word: str, tmp_path: Path
) -> None:
    rows = [f"{number}.wav,{cell}" for number, cell in enumerate(cells)]
    assert word in csv_of(tmp_path, "path,label", *rows).reason.split(";")[0].split()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,task", "a.wav,rock,genre"], "row 1: task is 'genre', expected multiclass"),
        (["path,label,metric", "a.wav,1,acc"], "row 1: metric is 'acc', expected accuracy"),
        (
            ["path,label,task,metric", "a.wav,1,multiclass,r2"],
            "metric is 'r2', expected accuracy, key_score",
        ),
        (["path,label,task", "a.wav,1,multiclass", "b.wav,1,multilabel"], "row 2: task is"),
        (["path,label,task", "a.wav,1,regression", "b.wav,x,regression"], "row 2: label is 'x'"),
        (["path,label,task", "a.wav,1,regression", "b.wav,1|,regression"], "row 2: label is"),
        (["path,label", "a.wav,1||2"], r"row 1: label is '1\|\|2'"),
        (["path,label,task", 'a.wav,"[""x""]",multiclass'], "row 1: label is .*one name"),
        (["path,label,task", "a.wav,x,frame-wise"], "row 1: label is 'x', expected frame-wise"),
        (["path,label", "a.wav,rock", "b.wav,3"], "mixture.*column 'task'"),
    ],
)
def test_labels_that_contradict_the_task_are_refused_with_their_row(
    lines: list, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        csv_of(tmp_path, *lines)


@pytest.mark.parametrize("label", [[1, "a"], [True, 2], {"a": 1}, [None, 1], float("inf")])
def test_json_that_is_neither_names_nor_numbers_is_refused_with_its_row(
    label: object, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"t\.jsonl, row 1"):
        jsonl_of(tmp_path, label)


# --- values ---


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_decimal_commas_are_numbers_where_no_comma_is_between_the_columns(
    delimiter: str, tmp_path: Path
) -> None:
    rows = [["path", "start_s", "label", "title"], ["a.wav", "1,5", "0,5|-,25", "Op. 1,5"]]
    found = csv_of(tmp_path, *(delimiter.join(row) for row in rows))
    (clip,) = found.clips
    assert (clip.start_s, clip.target, clip.info) == (1.5, [0.5, -0.25], {"title": "Op. 1,5"})
    assert found.task == Task("numbers", ("value_0", "value_1"))


def test_a_bar_at_the_end_names_no_empty_tag(tmp_path: Path) -> None:
    found = csv_of(tmp_path, "path,label", "a.wav,rock|", "b.wav,|pop||loud", "c.wav,|")
    assert targets(found) == [["rock"], ["pop", "loud"], []]
    assert found.task == Task("many-of", ("loud", "pop", "rock"))
    assert targets(jsonl_of(tmp_path, ["rock", ""], [None, "pop"])) == [["rock"], ["pop"]]


@pytest.mark.parametrize("word", ["None", "nan", "NaN", "null", "NA", "N/A", "<NA>"])
def test_words_for_missing_values_are_no_label_and_no_group(word: str, tmp_path: Path) -> None:
    found = csv_of(tmp_path, "path,label,group", f"a.wav,{word},{word}", "b.wav,rock,g")
    assert targets(found) == [None, "rock"]
    assert [clip.group for clip in found.clips] == [None, "g"]
    assert found.task == Task("one-of", ("rock",))
    assert targets(jsonl_of(tmp_path, word, None, float("nan"), "rock")) == [None] * 3 + ["rock"]


def test_the_class_none_is_a_class(tmp_path: Path) -> None:
    assert targets(csv_of(tmp_path, "path,label", "a.wav,none", "b.wav,voice")) == ["none", "voice"]


def test_two_unicode_forms_of_a_name_are_one_class_one_tag_and_one_group(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "Björk") for form in ("NFC", "NFD")]
    rows = [f"{number}.wav,{form},{form}" for number, form in enumerate(forms)]
    found = csv_of(tmp_path, "path,label,group", *rows)
    assert found.task == Task("one-of", (forms[0],))
    assert len({clip.group for clip in found.clips}) == 1
    tags = [f"{number}.wav,{form}|loud" for number, form in enumerate(forms)]
    assert csv_of(tmp_path, "path,label", *tags).task == Task("many-of", (forms[0], "loud"))


@pytest.mark.parametrize("column", ["label", "group"])
def test_a_label_or_group_with_a_lone_surrogate_is_refused_with_its_row(
    column: str, tmp_path: Path
) -> None:
    row = {"path": "a.wav", column: "x\ud800"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RequestError, match=rf"row 1: {column} is .*not Unicode"):
        datasets.load(tmp_path / "t.jsonl")


def test_a_cell_above_the_limit_of_csv_is_refused_with_its_row(tmp_path: Path) -> None:
    long = "x" * 200_000
    with pytest.raises(RequestError, match=r"t\.csv, row 2: cannot be read"):
        csv_of(tmp_path, "path,label", "a.wav,y", f"b.wav,{long}")


def test_json_nested_too_deep_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("[" * 200_000 + "\n")
    with pytest.raises(RequestError, match="line 1: is not JSON"):
        datasets.load(tmp_path / "t.jsonl")


def test_a_line_separator_inside_json_text_ends_no_row(tmp_path: Path) -> None:
    row = json.dumps({"path": "a.wav", "label": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "t.jsonl").write_text(row + "\r\n", encoding="utf-8")
    assert targets(datasets.load(tmp_path / "t.jsonl")) == ["one\u2028two"]


# --- parts of one file ---


def test_parts_of_one_file_have_ids_of_path_and_start_and_are_one_group(tmp_path: Path) -> None:
    rows = ["t0.wav,0,10,x", "t0.wav,10,20,y", "t0.wav,20.25,30,x", "t1.wav,5,10,y"]
    found = csv_of(tmp_path, "path,start_s,end_s,label", *rows)
    assert [clip.id for clip in found.clips] == ["t0.wav", "t0.wav@10", "t0.wav@20.25", "t1.wav"]
    assert [clip.group for clip in found.clips] == ["t0.wav", "t0.wav", "t0.wav", None]


def test_parts_of_one_file_keep_their_own_ids_and_groups(tmp_path: Path) -> None:
    rows = ["t0.wav,0,p,album", "t0.wav,10,q,album"]
    found = csv_of(tmp_path, "path,start_s,id,group", *rows)
    assert [(clip.id, clip.group) for clip in found.clips] == [("p", "album"), ("q", "album")]


def test_the_same_part_twice_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"id 't0.wav@10'.*column 'id'"):
        csv_of(tmp_path, "path,start_s", "t0.wav,10", "t0.wav,10", "t0.wav,20")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("path,target,grp", "grp (did you mean group?)"),
        ("path,taget", "taget (did you mean target?)"),
        ("path,Tagret,splits", "splits (did you mean split?), Tagret (did you mean target?)"),
        ("Path, LABEL ,Split", ""),
        ("path,target,artist,album,title,duration,genre,track", ""),
        ("path,target,group,grp", ""),  # what it may mean is there
        ("path,label,targets", ""),
    ],
)
def test_a_column_that_is_nearly_called_as_a_known_one_is_named(columns, said, tmp_path, caplog):
    path = tmp_path / "clips.csv"
    cells = ["train" if name == "Split" else "a" for name in columns.split(",")]
    path.write_text(f"{columns}\n{','.join(cells)}\n")
    datasets.load(path)
    assert [record.getMessage() for record in caplog.records] == (
        [f"{path}: columns not used: {said}"] if said else []
    )


# --- names of columns ---


def test_known_columns_may_be_in_any_case_with_spaces_around(tmp_path: Path) -> None:
    header = "PATH, Label ,Split,GROUP,Start_s,Artist,,"
    (clip,) = csv_of(tmp_path, header, "a.wav, rock ,Train,one,1.5,Nina,,").clips
    assert (clip.id, clip.target, clip.split, clip.group) == ("a.wav", "rock", "train", "one")
    assert clip.start_s == 1.5
    assert clip.info == {"Artist": "Nina"}  # others keep their names


@pytest.mark.parametrize("header", ["path,Label,label", "path, label ,label", "path,label,label"])
def test_two_columns_that_become_the_same_are_refused(header, tmp_path):
    with pytest.raises(RequestError, match=r"' ?[Ll]abel ?' and 'label' are all 'label'"):
        csv_of(tmp_path, header, "a.wav,rock,jazz")
