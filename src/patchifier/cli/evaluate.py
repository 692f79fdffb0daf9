"""Commands that evaluate: compare, leaks, report, reconstruct, demo, paper."""

import functools
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchifier.cli.command import Outcome, Overrides, counted, say
from patchifier.cli.progress import progress
from patchifier.config import Config, RequestError, read_changes, to_dict, update

if TYPE_CHECKING:
    import numpy as np

    from patchifier.embed import Embedder
    from patchifier.evaluate.leaks import Leak
    from patchifier.evaluate.paper import Step

UNCORRECTED = (
    "Intervals are not corrected for the number of comparisons: call it a difference only where "
    "p (Holm) is below 0.05, too."
)
# The model, and its baselines: the same architecture untrained, and features without learning.
ENCODERS = "patchifier-base,random:patchifier-base,mel-stats,mfcc"


def compare(
    cache: str,
    *,
    out: str,
    encoders: str = ENCODERS,
    probe: Literal["linear", "jukemir", "paper", "few-shot"] = "linear",
    robustness: bool = False,
    seed: int = 0,
) -> Outcome:
    """Compare encoders by the same probe on the same clips.

    Parameters
    ----------
    cache : str
        From 'patchifier prepare', with targets.
    out : str
        Run folder.
    encoders : str
        Comma-separated: models, mel-stats, mfcc, chroma, handcrafted, random, ... Differences are
        of the first from each other one.
    probe : str
        How the probe is trained: one linear layer; JukeMIR's grid of 216 probes; the head of the
        paper; or few clips of each class.
    robustness : bool
        Also test under perturbations of the audio.
    seed : int
        Seed of the probe's random draws; 0 by default.

    Examples
    --------
    patchifier-base, random weights, mel statistics and MFCC on your labels:
        $ patchifier compare genres --out side-by-side

    Your own model, also on changed audio:
        $ patchifier compare genres --encoders run/model,mfcc --out more --robustness
    """
    from patchifier import evaluate
    from patchifier.cache import Cache
    from patchifier.evaluate import compare, report

    data = Cache(cache)
    specs = [spec.strip() for spec in encoders.split(",") if spec.strip()]
    if not specs:
        raise RequestError(
            "--encoders names no encoder, expected some, such as 'runs/demo/model,random,mfcc'."
        )
    compare.require_fit(data, Path(out))  # before random weights are calibrated
    results = compare.compare(
        data,
        evaluate.encoders.encoders_of(specs, data=data, seed=seed, progress=progress),
        Path(out),
        protocol=probe,
        robust=robustness,
        seed=seed,
        progress=progress,
    )
    page = report.report([Path(out)], Path(out) / "report", progress=progress)
    lines = [*results["notes"], "", comparison_text(results), f"Report: {page}"]
    return Outcome(results, "\n".join(lines))


def comparison_text(results: dict[str, Any]) -> str:
    """Lay a comparison out for a terminal: scores, then differences from the first."""
    from patchifier.evaluate.report.tables import random_notes

    width = max([24, *(len(row["encoder"]) + 2 for row in results["rows"])])
    lines = [
        f"{results['dataset']}: {results['protocol']} probe, {results['split']}",
        f"{'encoder':<{width}}{'metric':<12}{'value':>7}   95 % interval     n",
    ]
    for row in results["rows"]:
        notes = (row["method"].partition(", ")[2], row["subset"], row["condition"])
        score = f"{row['encoder']:<{width}}{row['metric']:<12}{row['value']:>7.3f}"
        note = ", ".join(part for part in notes if part)
        lines.append(f"{score}   {_interval(row)}  {row['n']:>4}  {note}".rstrip())
    lines += random_notes(results["rows"])
    for row in results["differences"]:
        lines.append(f"{row['first']} - {row['second']}: {_difference(row)}")
    if len(results["differences"]) > 1:
        lines.append(UNCORRECTED)
    return "\n".join(lines)


def results_table(rows: list[dict[str, Any]]) -> str:
    """Lay rows of results out for a terminal."""
    from patchifier.evaluate.report.tables import learnt_nothing_notes

    width = max([12, *(len(row["encoder"]) + 2 for row in rows)])
    lines = [f"{'encoder':<{width}}{'method':<20}{'metric':<10}{'value':>7}   95 % interval     n"]
    for row in rows:
        what = f"{row['encoder']:<{width}}{row['method']:<20}{row['metric']:<10}"
        lines.append(f"{what}{row['value']:>7.3f}   {_interval(row)}  {row['n']:>4}")
    lines += learnt_nothing_notes(rows)
    return "\n".join(lines)


def _difference(row: dict[str, Any]) -> str:
    from patchifier.statistics import NONE_DIFFERS

    if row["p_holm"] is None:
        return "not defined on the tested clips"
    if row.get("equal_predictions"):
        return f"{row['value']:+.3f}, equal predictions"
    interval = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    note = f", {NONE_DIFFERS}" if row.get("agree") and row["value"] == 0 else ""
    return f"{row['value']:+.3f} {interval}{note}, p = {row['p_holm']:.3f} (Holm)"


def _interval(row: dict[str, Any]) -> str:
    if row.get("learnt_nothing"):
        return f"{'learnt nothing':<14}"
    return f"[{row['low']:.3f}, {row['high']:.3f}]"


def leaks(first: str, second: str, *, out: str = "") -> Outcome:
    """Find recordings that two caches share, such as training clips in a test set.

    Parameters
    ----------
    first : str
        Cache of the training data. A bundled model has none: its card lists its training data.
    second : str
        Cache of the test data.
    out : str
        CSV file for the pairs.

    Examples
    --------
    Is a recording of the test set in the training data?
        $ patchifier leaks cache genres

    The same, with all pairs in a file:
        $ patchifier leaks cache genres --out pairs.csv
    """
    from patchifier.cache import Cache
    from patchifier.evaluate import leaks

    for path in (first, second):
        _require_no_model(path)
    trained, tested = Cache(first), Cache(second)
    found = leaks.leaks(trained, tested, progress=progress("clips"))
    if out:
        leaks.save(found, out)
    lines = [leak_line(leak) for leak in found]
    lines.append(
        f"{counted(len(found), 'pair')} between {counted(len(trained.clips), 'clip')} of "
        f"{trained.name} and {len(tested.clips)} of {tested.name}."
    )
    pairs = [asdict(leak) for leak in found]
    return Outcome({"leaks": pairs, "first": trained.name, "second": tested.name}, "\n".join(lines))


def leak_line(leak: "Leak") -> str:
    """Lay a pair of clips out in one line."""
    where = f"{leak.first} = {leak.second} at {leak.offset_s:+.2f} s"
    line = f"{leak.kind} ({leak.score:.2f}): {where}, {leak.overlap_s:.1f} s side by side"
    return f"{line}, of one group" if leak.one_group else line


def _require_no_model(path: str) -> None:
    """Refuse a model and name the cache that is expected."""
    from patchifier import weights

    if path in weights.names():
        raise RequestError(
            f"{path} comes without the music it was trained on, expected a cache of that: its "
            f"card, {weights.find(path) / 'README.md'}, lists it. benchmarks/open/README.md "
            "describes how to build the list again; 'patchifier prepare' makes a cache of it."
        )
    if (Path(path) / "model.safetensors").exists():
        raise RequestError(
            f"{path} is a model, expected the cache it was trained on: run.json of its run names "
            "it as 'cache'."
        )


def report(runs: list[str], *, out: str, without_sounds: bool = False) -> Outcome:
    """Write a page about runs: scores, figures, errors with sounds, how they were made.

    Parameters
    ----------
    runs : list of str
        Run folders, or folders that hold some.
    out : str
        Folder for index.html, and for its figures and tables as files.
    without_sounds : bool
        Leave out sounds, such as excerpts of music that you may not pass on.

    Examples
    --------
    A page about two runs: page/index.html:
        $ patchifier report finetuned run --out page

    A page about all runs below a folder:
        $ patchifier report runs --out page
    """
    from patchifier.evaluate import report

    page = report.report(runs, out, sounds=not without_sounds, progress=progress)
    nothing = tuple(report.nothing_under(runs))
    return Outcome({"page": str(page)}, f"report: {page}", 1 if nothing else 0, nothing)


def reconstruct(
    file: str, *, out: str, model: str = "", start_s: float = 0.0, sound: bool = False
) -> Outcome:
    """Draw what a model predicts for masked patches of a song.

    Parameters
    ----------
    file : str
        Audio file.
    out : str
        Picture: .png, .svg or .pdf.
    model : str
        Model folder or bundled model; patchifier-paper, which was trained to draw, by default.
    start_s : float
        Start of the excerpt in the song, in seconds; 0 by default.
    sound : bool
        Also write the reconstructions as wav files beside the picture.

    Examples
    --------
    Mask parts of a song and draw what the model predicts:
        $ patchifier reconstruct song.mp3 --out picture.png

    The minute from 1:00, with sound files, by your own model:
        $ patchifier reconstruct song.mp3 --start_s 60 --model run/model --sound --out picture.png
    """
    import numpy as np

    from patchifier import embed, predictors, weights
    from patchifier.evaluate import report
    from patchifier.jobs import file_lock
    from patchifier.train import pictures

    embedder, picture = embed.load_to_draw(model or weights.PAPER), Path(out)
    arrays = _reconstructions(embedder, file, start_s)
    errors, baselines = {}, {}
    for ratio in map(str, pictures.PICTURE_RATIOS):
        masked = arrays[f"masked_{ratio}"].astype(bool)
        difference = arrays["original"] - arrays[f"reconstructed_{ratio}"]
        errors[ratio] = float(np.square(difference[masked]).mean())
        baselines[ratio] = predictors.untrained_mse(arrays["original"], masked)
    facts = pictures.picture_facts(Path(file).name, {"title": Path(file).stem}, embedder.config)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(picture, "reconstruct"):
        sounds = _save_sound(arrays, embedder.config, picture) if sound else []
        report.save_figure(report.reconstruction_figure(arrays, facts), picture)
    unit = f"(dB/{1 / embedder.config.spectrogram.db_scale:g})^2"
    lines = [f"{path}: sound" for path in sounds]
    lines.append(f"{picture}: MSE of masked patches in {unit}; the picture has its root in dB")
    lines += [_error_line(ratio, error, baselines[ratio]) for ratio, error in errors.items()]
    lines += _verdict(errors, baselines)
    results: dict[str, Any] = {
        "picture": str(picture),
        "masked_mse": errors,
        "references": baselines,
    }
    results["sounds"] = [str(path) for path in sounds]
    return Outcome(results, "\n".join(lines))


def _reconstructions(embedder: "Embedder", file: str, start_s: float) -> dict[str, "np.ndarray"]:
    """Patches (N, M, T) of an excerpt; for each ratio its mask (N,) and the reconstruction."""
    import numpy as np

    from patchifier.train import pictures
    from patchifier.windows import window_patches

    config = embedder.config
    most, _ = window_patches(config)
    frames = config.model.patch_frames
    end_s = start_s + most * frames * config.spectrogram.frame_s + 1
    pieces = embedder.pieces(file, start_s=start_s, end_s=end_s)
    log_mel = np.concatenate(list(pieces), axis=1)
    n_patches = min(most, max(1, log_mel.shape[1] // frames))
    reconstruct = functools.partial(embedder.reconstruct, log_mel)
    return pictures.reconstructions(reconstruct, n_patches, config.pretrain.seed)


def _save_sound(arrays: dict[str, "np.ndarray"], config: Config, picture: Path) -> list[Path]:
    """Write the original and each reconstruction as wav files beside the picture."""
    from patchifier import audio, spectrogram

    shown, paths = progress("sounds"), []
    names = [name for name in arrays if not name.startswith("masked_")]
    for number, name in enumerate(names):
        shown(number, len(names), name)
        patches = arrays[name][:, None]
        log_mel = spectrogram.join(patches, len(patches) * config.model.patch_frames, tail="anchor")
        waveform = spectrogram.to_waveform(log_mel, config.spectrogram)
        path = picture.with_name(f"{picture.stem}_{name}.wav")
        audio.save(path, waveform, config.spectrogram.sample_rate)
        paths.append(path)
    shown(len(names), len(names), "")
    return paths


def _error_line(ratio: str, error: float, baselines: dict[str, float]) -> str:
    """Put the error at a mask ratio beside those of predictors without a model."""
    others = [f"{name.replace('_', ' ')} {value:.5f}" for name, value in baselines.items()]
    return f"  ratio {ratio:<5}" + ", ".join([f"model {error:.5f}", *others])


def _verdict(errors: dict[str, float], baselines: dict[str, dict[str, float]]) -> list[str]:
    """Say at how many mask ratios a predictor without a model is better; empty without one."""
    compared = {ratio: min(others.values()) for ratio, others in baselines.items() if others}
    if not compared:
        return []
    behind = sum(errors[ratio] > best for ratio, best in compared.items())
    standing = f"behind the best reference at {behind} of {len(compared)} ratios"
    if not behind:
        standing = f"at least as good as every reference at all {len(compared)} ratios"
    return [f"lower is better; the model is {standing}; one clip says little"]


def demo(*, out: str = "", paper: bool = False, changes: Overrides) -> Outcome:
    """Run the whole method on the bundled clips: pre-training, probes, fine-tuning, report.

    Parameters
    ----------
    out : str
        Folder for everything; runs/demo by default, runs/rehearsal with --paper.
    paper : bool
        Rehearse 'patchifier paper' instead: every step, on the bundled clips arranged as the
        paper's data sets, with labels drawn at random. No figure of it is a result.
    changes : Overrides
        Any part of a config: a JSON file, such as a run's own config.json, or a recipe's name.

    Examples
    --------
    The whole method in four to six minutes, in runs/demo:
        $ patchifier demo

    The same with settings of your own, in another folder:
        $ patchifier demo --config settings.json --out runs/other
    """
    recipe = "rehearsal" if paper else "demo"
    config = changes.apply(update(Config(), read_changes(recipe)))
    return _rehearsal(Path(out or "runs/rehearsal"), config) if paper else _demo(out, config)


def _demo(out: str, config: Config) -> Outcome:
    from patchifier.evaluate import demo

    outcome = demo.demo(out or "runs/demo", config=config, progress=progress)
    results = outcome.results
    lines = [results_table(results["rows"]), ""]
    for row in results["differences"]:
        points = [f"{100 * row[name]:+.1f}" for name in ("value", "low", "high")]
        names = f"{row['first']} - {row['second']}"
        lines.append(f"{names}: {points[0]} points [{points[1]}, {points[2]}]")
    errors = [f"{name} {value:.5f}" for name, value in results["stage_two"].items()]
    lines += ["", *results["notes"], ""]
    lines.append(f"Stage II, masked-patch MSE on held-out clips: {', '.join(errors)}")
    counted = f"{results['parameters']:,} parameters, {results['seconds']:.0f} s"
    lines.append(f"{counted}. Report: {outcome.page}")
    return Outcome(results, "\n".join(lines))


REHEARSAL_SEEDS = 2


def _rehearsal(out: Path, config: Config) -> Outcome:
    from patchifier.evaluate import paper, stand_ins
    from patchifier.io import write_json

    stand_ins.build(out / "data", progress=progress)
    write_json(out / "config.json", to_dict(config))
    settings = str(out / "config.json")
    return _run_steps(paper.steps(out / "data", out, settings, seeds=REHEARSAL_SEEDS), out)


def paper(data: str, *, out: str, config: str = "paper") -> Outcome:
    """Run every experiment of the paper on the paper's own data, and report.

    Run again after an interruption, it goes on. docs/paper.md says how long it takes and how to
    read the result.

    Parameters
    ----------
    data : str
        Folder that holds the folders mtat, gtzan and emomusic; 'patchifier check' says whether
        they are complete.
    out : str
        Folder for everything.
    config : str
        A JSON file, or a recipe's name.

    Examples
    --------
    Everything, with the paper's settings:
        $ patchifier paper data --out reproduced

    With fewer steps of pre-training, by settings of your own:
        $ patchifier paper data --config settings.json --out shorter
    """
    from patchifier.evaluate import paper

    for name in ("mtat", *paper.TASKS):
        if not (Path(data) / name).is_dir():
            raise RequestError(
                f"{data} has no folder {name}, expected the folders mtat, gtzan and emomusic. "
                f"'patchifier fetch {name} --root {Path(data) / name}' downloads what can be; "
                "'patchifier demo --paper' rehearses without data."
            )
    return _run_steps(paper.steps(Path(data), Path(out), config), Path(out))


def _run_steps(steps: "list[Step]", out: Path) -> Outcome:
    from patchifier.evaluate import paper

    done = paper.run(steps, out, say=say)
    page, seconds = out / "report" / "index.html", sum(step["seconds"] for step in done)
    text = f"{counted(len(done), 'step')}, {seconds:.0f} s. Report: {page}"
    return Outcome({"page": str(page), "seconds": round(seconds, 1), "steps": done}, text)
