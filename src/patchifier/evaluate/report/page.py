"""The page: figures and tables of all runs, rendered by templates into one self-contained file."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchifier import predictors
from patchifier.config import RequestError
from patchifier.datasets import STAND_IN
from patchifier.evaluate.report.comparison import comparison_of
from patchifier.evaluate.report.drawing import picture, stem_of
from patchifier.evaluate.report.errors import errors_of, predictions_of
from patchifier.evaluate.report.figures import (
    PREDICTORS,
    convergence_figure,
    curves_figure,
    health_figure,
    predictors_in,
)
from patchifier.evaluate.report.folders import (
    METHODS,
    Row,
    RunFolder,
    get_part,
    read_reconstructions,
    to_number,
)
from patchifier.evaluate.report.headline import (
    described_model,
    held_out_errors,
    model_sentence,
    question,
    score_sentence,
    setting,
)
from patchifier.evaluate.report.provenance import made
from patchifier.evaluate.report.reconstruction import mask_ratios, reconstruction_figure
from patchifier.evaluate.report.scores import all_differences, score_table
from patchifier.evaluate.report.sound import EXCERPT_S, kriging_errors, reconstruction_sounds
from patchifier.evaluate.report.tables import group_rows
from patchifier.extras import need
from patchifier.io import ProgressOf

Context = dict[str, Any]
WHOLE = 10**6  # a patience above this many steps stops nothing


def page_text(
    runs: Sequence[RunFolder],
    demos: Mapping[Path, Row],
    rows: Sequence[Row],
    problems: list[str],
    out: Path,
    *,
    steps: Sequence[tuple[str, str, str]] = (),
    sounds: bool = True,
    progress: ProgressOf,
) -> str:
    """Draw the figures beside the page and render the page.

    What cannot be drawn is added to the problems.
    """
    pretrained = [run for run in runs if run.kind == "pretrain"]
    several, models = len(pretrained) > 1, model_names(runs)
    compared = [comparison_of(run, problems, out, models) for run in runs if run.kind == "compare"]
    groups = group_rows(rows)
    described, named = described_model(runs)
    context = {
        "labels": ", ".join(run.label for run in runs),
        "question": question(runs),
        "model": model_sentence(described, demos) if described else None,
        "named": named,  # the sentences are about several models
        "scores": [score for each in groups.items() if (score := score_sentence(*each))],
        "stand_in": any(STAND_IN.lower() in run.dataset for run in runs),
        "setting": setting(runs),
        "excerpt_s": f"{EXCERPT_S:g}" if sounds else "",
        **score_table(rows, demos, groups),
        "differences": all_differences(runs, demos, problems),
        **_convergence(runs, rows, out),
        "reconstructions": [
            drawn
            for run in pretrained
            for drawn in _reconstructions(run, demos, out, problems, several, sounds, progress)
        ],
        "errors": _errors(runs, out, sounds, progress),
        "comparisons": [comparison for comparison in compared if comparison],
        "curves": [drawn for run in pretrained for drawn in _curves(run, out, several)],
        "steps": steps,
        "made": [made(run) for run in runs],
    }
    context["missing"] = [(run.label, f"{'; '.join(run.missing)}.") for run in runs if run.missing]
    context["missing"] += [("", problem) for problem in problems]
    return render("page.html", context)


def render(template: str, context: Context) -> str:
    """Render a template; every text is escaped and one line long, unless it is Markup."""
    jinja2 = need("jinja2")
    from markupsafe import Markup, escape  # which jinja2 needs

    def one_line(value: Any) -> Any:
        plain = isinstance(value, str) and not isinstance(value, Markup)
        return " ".join(value.split()) if plain else value

    folder = Path(__file__).with_name("templates")
    blocks = {"trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.FileSystemLoader(folder)
    environment = jinja2.Environment(loader=loader, autoescape=True, finalize=one_line, **blocks)
    environment.filters["preformatted"] = escape
    return environment.get_template(template).render(context)


def model_names(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Folder of each model that a run of this report trained -> its name, that of the run."""
    return {str(run.path / "model"): run.label for run in runs if run.kind == "pretrain"}


# --- figures ---


def _reconstructions(
    run: RunFolder,
    demos: Mapping[Path, Row],
    out: Path,
    problems: list[str],
    several: bool,
    sounds: bool,
    progress: ProgressOf,
) -> list[Context]:
    path = run.path / "stage-two" / "reconstructions.safetensors"
    if not path.exists():
        return []
    try:
        arrays, facts = read_reconstructions(path)
        figure = reconstruction_figure(arrays, facts)
    except RequestError as error:
        problems.append(f"{run.label}: {error}")
        return []
    ratios = mask_ratios(arrays)
    shown = progress(f"report, {run.label}")
    urls = reconstruction_sounds(run, arrays, ratios, shown) if sounds else {}
    drawn = picture(
        figure,
        out / stem_of("reconstruction", run, several=several),
        "Spectrogram of a clip; below it, for each mask ratio, the patches given, the patches "
        "predicted, and the error in decibels.",
        pixels=True,
        run=run,
        patch_s=arrays["original"].shape[2] * float(facts["frame_s"]),
        clip=facts.get("title") or facts.get("clip", "?"),
        original=urls.get("", ""),
        heads=[words for _, words in list(PREDICTORS.values())[1:]],
        ratios=[_clip_errors(ratio, arrays, facts, urls) for ratio in ratios],
        averages=_averages(run, demos),
    )
    return [drawn]


def _clip_errors(
    ratio: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str], urls: Mapping[str, str]
) -> Context:
    """Sound and RMSE in dB at one mask ratio: of the model, then of each predictor without one."""
    original, masked = arrays["original"], arrays[f"masked_{ratio}"].astype(bool)
    error = np.square(arrays[f"reconstructed_{ratio}"] - original, dtype=np.float64)[masked]
    found = predictors.untrained_mse(original, masked)
    found |= {"kriging": kriging_errors(facts).get(ratio, math.nan)}
    ours = float(error.mean()) if error.size else math.nan
    names = [name.removesuffix("_mse") for name in list(PREDICTORS)[1:]]
    values = [ours, *(found.get(name, math.nan) for name in names)]
    decibels = [math.sqrt(mse) / float(facts["scale"]) for mse in values]
    return {
        "name": f"{100 * float(ratio):g} %",
        "count": f"{int(masked.sum())} of {len(masked)} patches",
        "sound": urls.get(ratio, ""),
        "errors": [f"{value:.1f}" if value == value else "–" for value in decibels],
    }


def _averages(run: RunFolder, demos: Mapping[Path, Row]) -> list[Context]:
    """Errors on all held-out clips, the smallest first: name, dB, length of a bar from 0 to 1."""
    errors = held_out_errors(run, demos)
    if "masked_mse" not in errors:
        return []
    named = {"masked_mse": "this model"}
    named |= {name: words for name, (_, words) in predictors_in(errors).items()}
    if "band_means_mse" in errors:
        named["band_means_mse"] = "own mean of the masked patch in each band (not a prediction)"
    most = max(errors[name] for name in named) or 1.0
    bars = []
    for name in sorted(named, key=errors.__getitem__):
        bar = {"name": named[name], "error": f"{errors[name]:.2f} dB"}
        bars.append({**bar, "length": errors[name] / most, "ours": name == "masked_mse"})
    return bars


def _convergence(runs: Sequence[RunFolder], rows: Sequence[Row], out: Path) -> Context:
    """One figure for each model and task, with the random network of the task behind it.

    ``further`` are those of one method where others have several.
    """
    tuned = [run for run in runs if run.kind == "finetune"]
    main = [
        run
        for run in tuned
        if run.facts.get("encoder") != "random" or not any(_opposes(run, other) for other in tuned)
    ]
    main.sort(key=lambda run: -_methods(run))
    drawn: dict[bool, list[Context]] = {False: [], True: []}
    for run in main:
        opponents = [other for other in tuned if _opposes(other, run)]
        is_further = _methods(run) < 2 <= _methods(main[0])
        if figure := convergence_figure(run, opponents, rows):
            path = out / stem_of("figure-2", run, several=len(main) > 1)
            alt = (
                f"{run.dataset or run.label}: validation {run.metric} against step for each "
                f"method of fine-tuning, and test {run.metric} of each with its interval."
            )
            patience = to_number(get_part(run.config, "finetune").get("patience"))
            cut = f"{patience:.0f}" if patience < WHOLE else ""
            shown = picture(figure, path, alt, run=run, random=opponents, patience=cut)
            drawn[is_further].append(shown)
    return {"convergence": drawn[False], "further": drawn[True]}


def _methods(run: RunFolder) -> int:
    return sum((run.path / method).is_dir() for method in METHODS)


def _opposes(other: RunFolder, run: RunFolder) -> bool:
    """Whether a run is the random network beside another model on the same task."""
    alike = (other.path.parent, other.test, other.metric) == (run.path.parent, run.test, run.metric)
    return alike and other.facts.get("encoder") == "random" != run.facts.get("encoder")


def _errors(
    runs: Sequence[RunFolder], out: Path, sounds: bool, progress: ProgressOf
) -> list[Context]:
    """Confusions and errors of one method on each data set."""
    found = predictions_of(runs)
    drawn = []
    for each in found:
        shown = progress(f"report, errors on {each.run.dataset or each.run.label}")
        several = len(found) > 1
        drawn.append(errors_of(each, out, sounds=sounds, several=several, progress=shown))
    return [one for one in drawn if one]


def _curves(run: RunFolder, out: Path, several: bool) -> list[Context]:
    drawn = []
    if figure := curves_figure(run):
        alt = (
            "Training and validation error of stage I and stage II against step, "
            "with simple predictors as horizontal lines."
        )
        path = out / stem_of("losses", run, several=several)
        drawn.append(picture(figure, path, alt, run=run))
    if figure := health_figure(run):
        alt = (
            "Error with and without order, variance and onsets predicted, standard deviation "
            "and effective rank of the embeddings against step."
        )
        path = out / stem_of("health", run, several=several)
        width = get_part(run.config, "model").get("embed_dim", "?")
        drawn.append(picture(figure, path, alt, run=run, width=width))
    return drawn
