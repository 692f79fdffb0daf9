"""The steps of the paper as data, how they are run, and the stand-ins of a rehearsal."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from patchifier import cli, datasets
from patchifier.cli.command import parse
from patchifier.config import RequestError
from patchifier.evaluate import paper, stand_ins

DATA, OUT = Path("DATA"), Path("OUT")


def words_of(step):
    return step.words[0], dict(zip(step.words, step.words[1:]))


def test_every_step_is_a_command_line_that_parses():
    for step in paper.steps(DATA, OUT, "paper"):
        name, *rest = step.words
        parse(cli.COMMANDS[name], rest)


def test_each_step_reads_what_an_earlier_one_wrote():
    written = {str(DATA / name) for name in ("mtat", "gtzan", "emomusic")}
    for step in paper.steps(DATA, OUT, "paper"):
        paths = {word for word in step.words if word.startswith(("OUT/", "DATA/"))}
        paths = {path.split(",")[0] for path in paths}  # --encoders MODEL,random,...
        _, flags = words_of(step)
        own = flags["--out"]
        assert {path.removesuffix("/model") for path in paths - {own}} <= written, step.command
        written.add(own)


def test_curves_of_figure_2_are_whole_and_seeds_are_the_papers():
    tuned = [step for step in paper.steps(DATA, OUT, "paper") if step.words[0] == "finetune"]
    flags = {words_of(step)[1]["--out"]: words_of(step)[1] for step in tuned}
    assert {found["--finetune.n_seeds"] for found in flags.values()} == {"5"}
    for task in ("gtzan", "emomusic"):
        figure = flags[f"OUT/figure-2-{task}"]
        assert (figure["--method"], int(figure["--finetune.patience"]) > 10**6) == ("all", True)


def run(monkeypatch, tmp_path, codes):
    """Run steps that end with these exit codes; give what was run."""
    seen, left = [], iter(codes)
    monkeypatch.setattr(paper, "_run", lambda words: seen.append(words) or next(left))
    steps = [paper.Step(f"section {n // 2}", (f"command{n}",)) for n in range(len(codes))]
    lines = []
    try:
        paper.run(steps, tmp_path, say=lines.append)
    finally:
        run.seen, run.lines = seen, lines
    return json.loads((tmp_path / "steps.json").read_text())


def test_skipped_files_stop_nothing_and_each_step_is_recorded(monkeypatch, tmp_path):
    done = run(monkeypatch, tmp_path, [0, 1, 0])
    assert [step["command"] for step in done] == [f"patchifier command{n}" for n in range(3)]
    assert sum("== section" in line for line in run.lines) == 2


def test_a_step_that_fails_is_named_and_nothing_runs_after_it(monkeypatch, tmp_path):
    with pytest.raises(RequestError, match=r"step 2 of 3 failed .* patchifier command1"):
        run(monkeypatch, tmp_path, [0, 2, 0])
    assert len(run.seen) == 2


def test_an_interrupted_step_interrupts_the_run(monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, [0, 130, 0])
    assert len(run.seen) == 2


def test_a_step_is_a_process_with_its_own_exit_code(capfd, child_environment, monkeypatch):
    for name, value in child_environment.items():
        monkeypatch.setenv(name, value)
    assert paper._run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("patchifier ")
    assert paper._run(["no-such-command"]) == 2


def test_the_command_names_a_missing_data_set(run_cli, tmp_path):
    (tmp_path / "mtat").mkdir()
    said = run_cli(f"paper {tmp_path} --out {tmp_path / 'out'}", 2)
    assert "has no folder gtzan" in said
    assert "demo --paper" in said


@pytest.fixture
def run_cli(capsys):
    """Run a command line that ends with this exit code; give what it says."""

    def command(line, code):
        assert cli.main(line.split()) == code
        return capsys.readouterr().err

    return command


# --- stand-ins ---


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stand-ins with few and short clips: 5 tracks a genre, every tenth song."""
    folder = tmp_path_factory.mktemp("stand-ins")
    songs = stand_ins.packaged("emomusic_jukemir.csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_ins, "MTAT_S", 0.5)
        patch.setattr(stand_ins, "TASK_S", 0.3)
        patch.setattr(stand_ins, "GENRE_TRACKS", 5)
        patch.setattr(stand_ins, "packaged", lambda name: songs[::10])
        stand_ins.build(folder, progress=lambda title: lambda *state: None)
    return folder


def test_stand_ins_are_read_as_the_published_sets_and_say_what_they_are(root):
    mtat = datasets.load("mtat:paper16k", root=root / "mtat")
    assert mtat.name == "mtat (stand-in)"
    assert len(mtat.clips) == 47  # of 56, those that are in folders 0 to c
    gtzan = datasets.load("gtzan:folds", root=root / "gtzan", partial=True)
    assert (gtzan.name, len(gtzan.clips)) == (
        "gtzan:folds (stand-in)",
        51,
    )  # jazz.00054 may be missing
    emomusic = datasets.load("emomusic", root=root / "emomusic")
    assert emomusic.name == "emomusic (stand-in)"
    assert {clip.split for clip in emomusic.clips} == {"train", "valid", "test"}
    assert any(clip.subsets for clip in emomusic.clips)
    for name in ("mtat", "gtzan", "emomusic"):
        assert "No figure computed from it is a result" in (root / name / "STAND-IN").read_text()


def test_real_data_has_its_plain_name(root, tmp_path):
    for path in (root / "mtat").iterdir():
        if path.name != "STAND-IN":
            (tmp_path / path.name).symlink_to(path)
    assert datasets.load("mtat", root=tmp_path).name == "mtat"


def test_rates_and_channels_are_those_of_the_published_sets(root):
    kinds = {"mtat/*/*.mp3": 16_000, "gtzan/genres/*/*.wav": 22_050, "emomusic/*/*.mp3": 44_100}
    for pattern, rate in kinds.items():
        info = soundfile.info(next(iter(sorted(root.glob(pattern)))))
        assert (info.samplerate, info.channels) == (rate, 1), pattern


def test_stand_ins_of_the_tasks_have_no_music_of_pre_training():
    clips = datasets.load("demo").clips
    tracks = [
        {clip.group for clip in clips if clip.fold in folds} for folds in ((0, 1), (2,), (3,))
    ]
    assert not tracks[0] & tracks[1]
    assert not tracks[0] & tracks[2]


def test_ratings_know_nothing_of_the_sound(root):
    emomusic = datasets.load("emomusic", root=root / "emomusic")
    peaks = [np.abs(soundfile.read(clip.path)[0]).max() for clip in emomusic.clips]
    arousal = [clip.target[0] for clip in emomusic.clips]
    assert abs(np.corrcoef(peaks, arousal)[0, 1]) < 0.4  # 75 songs: 0.11 is one deviation


def test_what_is_complete_stays(root, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    stand_ins.build(root, progress=lambda title: lambda *state: None)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_import_needs_no_torch():
    import subprocess

    code = "import sys, patchifier.evaluate.paper, patchifier.evaluate.stand_ins; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
