"""Every number of the paper, and every decision it leaves open.

Frozen dataclasses of plain values, written to and read from JSON. Standard library only, so that ``--help`` is instant.
Section numbers refer to the paper, "Spectrograms are sequences of patches"; DESIGN.md gives the reason for each default.

A file for ``--config`` states any part of a :class:`Config`; what it leaves out keeps its default::

    {"pretrain": {"mask_ratio": 0.9}}
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar


class RequestError(ValueError):
    """The request is invalid: the message names the fault, what was expected and what to do. Exit code 2."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RequestError(message)


@dataclass(frozen=True)
class SpectrogramConfig:
    """From a waveform to a log-mel (4.3, 4.4)."""

    sample_rate: int = 22_050
    """Rate in Hz to which all audio is resampled (4.4)."""
    bands: int = 64
    """Rows M: mel bands (4.4), and behind them, where there are any, pitch bands."""
    hop: int = 512
    """Samples between frames (4.4)."""
    n_fft: int = 2048
    """FFT size in samples; not given in the paper."""
    window: Literal["hann", "hamming"] = "hann"
    """Analysis window, n_fft samples long."""
    mel_scale: Literal["slaney", "htk"] = "slaney"
    """Formula of the mel scale."""
    f_min_hz: float = 0.0
    """Lower edge of the lowest band."""
    f_max_hz: float = 11_025.0
    """Upper edge of the highest band."""
    reference: Literal["absolute", "max"] = "absolute"
    """What 0 dB is: full scale, or the loudest value of the clip."""
    floor_db: float = -100.0
    """Lowest level that differs from silence."""
    top_db: float | None = None
    """If set, nothing lies further than this below the clip's loudest value."""
    scale: float = 0.01
    """Decibels are multiplied by this (4.3)."""
    pitch_bands: int = 0
    """How many of the rows are bands of equal steps in pitch, from a longer FFT; none in the paper."""
    pitch_n_fft: int = 8192
    """Its size in samples: mel bands lie 51 Hz apart below 1 kHz and hold no semitones there."""
    pitch_per_octave: int = 36
    """Pitch bands in an octave."""
    pitch_f_min_hz: float = 55.0
    """Centre of the lowest pitch band, A1."""

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        _require(
            self.hop > 0 and self.n_fft >= self.hop,
            f"spectrogram.n_fft ({self.n_fft}) must be at least hop ({self.hop}).",
        )
        _require(
            self.n_fft % 2 == 0,
            f"spectrogram.n_fft is {self.n_fft}, expected an even number: frames are centred.",
        )
        _require(self.bands >= 1, f"spectrogram.bands is {self.bands}, expected at least 1.")
        _require(
            0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2,
            f"spectrogram.f_min_hz ({self.f_min_hz}) and f_max_hz ({self.f_max_hz}) must lie in order between 0 and half the "
            f"sample rate ({self.sample_rate / 2:g} Hz).",
        )
        _require(
            0 <= self.pitch_bands < self.bands,
            f"spectrogram.pitch_bands is {self.pitch_bands}, expected fewer than the {self.bands} rows in all.",
        )
        if self.pitch_bands:
            fits = self.pitch_n_fft >= self.n_fft and self.pitch_n_fft % 2 == 0
            _require(
                fits,
                f"spectrogram.pitch_n_fft is {self.pitch_n_fft}, expected an even number of at least n_fft ({self.n_fft}).",
            )
            highest = self.pitch_f_min_hz * 2 ** (self.pitch_bands / self.pitch_per_octave)
            _require(
                self.pitch_f_min_hz > 0 and highest <= self.sample_rate / 2,
                f"{self.pitch_bands} pitch bands from {self.pitch_f_min_hz} Hz reach {highest:.0f} Hz, expected at most half the sample rate.",
            )
        _require(
            self.reference == "absolute" or self.top_db is not None,
            "spectrogram.reference 'max' needs top_db, for example 80.",
        )

    @property
    def silence(self) -> float:
        """The value of digital silence, which is also the padding value: -1 in the paper's setting, never 0."""
        return self.scale * (
            self.floor_db if self.reference == "absolute" else -(self.top_db or 0.0)
        )

    @property
    def mel_bands(self) -> int:
        """Rows that are mel bands."""
        return self.bands - self.pitch_bands

    @property
    def without_pitch(self) -> "SpectrogramConfig":
        """The same mel bands alone."""
        plain: dict[str, Any] = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.name.startswith("pitch_")
        }
        return dataclasses.replace(self, bands=self.mel_bands, **plain)

    @property
    def frame_samples(self) -> int:
        """Samples that a frame looks at."""
        return max(self.n_fft, self.pitch_n_fft if self.pitch_bands else 0)

    @property
    def frame_s(self) -> float:
        """Seconds between frames."""
        return self.hop / self.sample_rate


@dataclass(frozen=True)
class ModelConfig:
    """Feature extractor, bottleneck and decoder (4.1, 4.4)."""

    bands: int = 64
    """Height M of a patch (4.4)."""
    pitch_bands: int = 0
    """Rows of a patch, the last ones, that are pitch bands: they go through down modules of their own."""
    pitch_channels: int = 64
    """Filters of each of those."""
    frames: int = 32
    """Width W of a patch, in frames (4.4)."""
    positions: int = 25
    """Patches in the longest sequence that has learnt positions (4.4)."""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Filters of each down module: 16 at first, increasing (4.4)."""
    convolutions: int = 2
    """3 x 3 convolutions in each down module, the first of stride 2 (4.1)."""
    vector: Literal["flatten", "mean"] = "flatten"
    """How the last feature map becomes a vector."""
    width: int = 256
    """Length D of a patch vector and hidden size of the bottleneck (4.4)."""
    layers: int = 8
    """Transformer layers of the bottleneck (4.4)."""
    heads: int = 4
    """Attention heads of each layer (4.4)."""
    feed_forward: int = 1024
    """Hidden size of each layer's feed-forward part."""
    dropout: float = 0.1
    """Dropout in the bottleneck, in training."""
    embedding: Literal["bert", "plain", "relative"] = "bert"
    """BERT's embedding (a position on CLS too, LayerNorm, dropout); positions on the patches and nothing else; or no positions, but distances."""
    extractor: Literal["convolutions", "transformer"] = "convolutions"
    """What turns a patch into a vector: down modules (4.1), or a transformer over columns of four frames."""
    extractor_layers: int = 2
    """Layers of that transformer."""
    align: Literal["mlp", "linear"] = "mlp"
    """Layer between bottleneck and decoder, used in stage II only (4.4)."""
    decoder_channels: tuple[int, ...] | None = None
    """Filters into each of the decoder's up layers; the extractor's, mirrored, if not given."""

    decoder_norm: Literal["none", "batch"] = "none"
    """Batch norm after the decoder's convolutions, or none: "only upsampling and convolution" (4.4)."""
    predictor_layers: int = 0
    """If any, the bottleneck sees visible patches alone, and mask tokens meet a predictor of so many layers; none in the paper."""
    readout: int = 0
    """Length of pooled layers and summaries, which are standardised by what training clips have; 0 leaves them as they are."""
    components: tuple[int, int] = (0, 0)
    """Of the readout: how many of its first numbers, the pooled layers, become how many principal components of training clips."""
    estimators: tuple[Literal["tonic", "tempo"], ...] = ()
    """Which places of a clip are estimated beside its vectors (:mod:`patchifier.nn.equivariant`); none in the paper."""
    norm: Literal["after", "before"] = "after"
    """Where the bottleneck normalises: after each sum, as BERT, or before each part and once at the end."""
    vector_norm: Literal["layer", "none"] = "layer"
    """LayerNorm without weights of each patch vector before mask tokens and positions, which then start from N(0, 1); or none, and N(0, 0.02)."""

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        for name in (
            "bands",
            "frames",
            "positions",
            "convolutions",
            "pitch_channels",
            "extractor_layers",
            "width",
            "layers",
            "heads",
            "feed_forward",
        ):
            _require(
                getattr(self, name) >= 1,
                f"model.{name} is {getattr(self, name)}, expected at least 1.",
            )
        for name in ("channels", "decoder_channels"):
            given = getattr(self, name)
            _require(
                given is None or (len(given) > 0 and min(given) >= 1),
                f"model.{name} is {given}, expected numbers of at least 1.",
            )
        _require(
            0 <= self.dropout < 1,
            f"model.dropout is {self.dropout}, expected at least 0 and below 1.",
        )
        shrink = 2 ** len(self.channels)
        _require(
            self.mel_bands % shrink == 0 and self.frames % shrink == 0,
            f"a patch of {self.mel_bands} x {self.frames} cannot be halved {len(self.channels)} times: bands and model.frames must be multiples of {shrink}.",
        )
        fits = (
            0 <= self.pitch_bands < self.bands
            and self.pitch_bands % 6 == 0
            and (not self.pitch_bands or self.frames % 4 == 0)
        )
        _require(
            fits,
            f"model.pitch_bands ({self.pitch_bands}) must be fewer than model.bands and a multiple of 6, and model.frames then one of 4.",
        )
        for name in ("predictor_layers", "readout"):
            _require(
                getattr(self, name) >= 0,
                f"model.{name} is {getattr(self, name)}, expected 0 or more.",
            )
        pooled, kept = self.components
        fits = 0 <= kept <= pooled <= self.readout and (pooled == 0) == (kept == 0)
        _require(
            fits,
            f"model.components is {list(self.components)}, expected [0, 0], or how many of {self.readout} numbers become how many, not more.",
        )
        known = set(self.estimators) <= {"tonic", "tempo"} and len(set(self.estimators)) == len(
            self.estimators
        )
        _require(
            known,
            f"model.estimators is {list(self.estimators)}, expected some of tonic, tempo, each once.",
        )
        _require(
            self.pitch_bands > 0 or "tonic" not in self.estimators,
            "model.estimators holds 'tonic', which needs pitch bands: set model.pitch_bands.",
        )
        _require(
            self.width % self.heads == 0,
            f"model.width ({self.width}) must be a multiple of model.heads ({self.heads}).",
        )
        transforms = self.extractor == "transformer"
        _require(
            not transforms or self.frames % 4 == 0,
            f"model.frames is {self.frames}, expected a multiple of 4 with a transformer over columns of 4.",
        )
        _require(
            self.vector == "flatten" or transforms or self.channels[-1] == self.width,
            f"model.vector 'mean' gives {self.channels[-1]} numbers, so model.width ({self.width}) must be the same.",
        )
        _require(
            self.decoder_channels is None or len(self.decoder_channels) == len(self.channels),
            f"model.decoder_channels needs {len(self.channels)} numbers, one for each up layer.",
        )

    @property
    def mel_bands(self) -> int:
        """Rows of a patch that are mel bands."""
        return self.bands - self.pitch_bands


@dataclass(frozen=True)
class AugmentConfig:
    """The three augmentations of pre-training (4.4), and one beyond the paper."""

    scale: tuple[float, float] = (0.9, 1.2)
    """Random scaling: the range of the factor by which time is stretched."""
    intensity: tuple[float, float] = (0.8, 1.2)
    """Random intensity: the range of the factor on log-mel values."""
    intensity_per: Literal["element", "band", "spectrogram"] = "element"
    """What gets a factor of its own."""
    pitch: tuple[float, float] = (0.0, 0.0)
    """Range of semitones by which a clip is shifted; none in the paper."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("scale", "intensity"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high, f"augment.{name} is [{low}, {high}], expected 0 < low <= high."
            )
        _require(
            self.pitch[0] <= self.pitch[1],
            f"augment.pitch is {list(self.pitch)}, expected low <= high.",
        )

    @property
    def shifts_pitch(self) -> bool:
        """Whether there is a shift to draw."""
        return self.pitch != (0.0, 0.0)


DECAY_SHARE = 0.2  # of the steps of a trapezoid, over which its rate falls


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop (4.4)."""

    epochs: float = 1000.0
    """Passes over the training clips (4.4), unless steps is given."""
    steps: int = 0
    """Optimiser steps; 0 takes them from epochs."""
    batch: int = 32
    """Clips in a step, over all devices (4.4)."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW (4.4)."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices and kernels only."""
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    """Learning rate after the warm-up: constant; a half cosine down to zero; or constant, then linearly down to zero over the last fifth of the steps."""
    warm_up_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm; 0 leaves them alone."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(self.batch >= 1, f"batch is {self.batch}, expected at least 1.")
        _require(self.steps >= 0 and self.epochs > 0, "steps must be 0 or more and epochs above 0.")
        for name in ("weight_decay", "warm_up_steps", "clip_norm"):
            _require(
                getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, expected 0 or more."
            )
        _require(
            self.learning_rate > 0, f"learning_rate is {self.learning_rate}, expected above 0."
        )

    def total_steps(self, clips: int) -> int:
        """Optimiser steps for this many training clips."""
        return self.steps or math.ceil(self.epochs * clips / self.batch)

    def flat_steps(self, total: int) -> int:
        """Steps, of `total`, before the learning rate depends on how many there are."""
        if self.schedule == "constant":
            return total
        return total - math.ceil(DECAY_SHARE * total) if self.schedule == "trapezoid" else 0

    @property
    def without_length(self) -> "TrainingConfig":
        """The same training of any length; a cosine depends on its length from the first step on."""
        plain = TrainingConfig()
        return (
            self
            if self.schedule == "cosine"
            else dataclasses.replace(self, steps=plain.steps, epochs=plain.epochs)
        )


@dataclass(frozen=True)
class PretrainConfig:
    """The two stages of pre-training (4.2)."""

    stages: Literal["both", "one", "two"] = "both"
    """Which stages to run; 'two' alone starts from scratch or from --init."""
    stage_one: TrainingConfig = TrainingConfig()
    """Stage I: autoencode single patches."""
    stage_two: TrainingConfig = TrainingConfig()
    """Stage II: fill in masked patches."""
    extractor_rate: float = 1.0
    """Learning rate of the extractor in stage II, as a share of the others'; 0 leaves it as stage I trained it."""
    patches: int = 25
    """Patches drawn from each spectrogram (4.4)."""
    stage_one_patches: Literal["independent", "one"] = "independent"
    """Stage I sees that many independent positions of a spectrogram (4.4), or a single one (4.2)."""
    stage_two_patches: Literal["consecutive", "whole"] = "consecutive"
    """Stage II sees that many consecutive patches (4.4), or all of the spectrogram (4.2)."""
    mask_ratio: float = 0.75
    """Share of patch vectors that are masked; "a high ratio" (4.2)."""
    mask_ends: float = 0.0
    """Share of clips of which a stretch stays visible and what is around it is masked, instead of patches here and there."""
    loss_on: Literal["masked", "all"] = "masked"
    """Which patches count in stage II's loss."""
    loss_share: float = 1.0
    """Share of those that a training step decodes, drawn anew for each step: the same gradient on average, in less time."""
    extract: Literal["visible", "all"] = "visible"
    """Which patches the extractor sees in stage II; the masked ones' vectors are thrown away."""
    targets: tuple[str, ...] = ("pixels",)
    """What is predicted of patches and clips: rows of :mod:`patchifier.train.objectives`; several weigh themselves."""
    contrast_of: Literal["clip", "group"] = "clip"
    """What "contrast" tells apart: clips, each by its own masked patches; or groups (tracks), each by another crop: a batch holds two of each."""
    teacher_decay: float = 0.996
    """How slowly the copy that "latent" and "contrast" learn from follows the model."""
    teacher_features: str = ""
    """Folder of another model's vectors, the teacher's, for the target "distil": one file for each clip, named by its id, as ``features:DIR``."""
    target: Literal["augmented", "clean"] = "augmented"
    """What is reconstructed: patches as the model saw them, or before random intensity."""
    validation_fold: int | None = None
    """Fold held out for validation, where clips have folds."""
    validation_fraction: float = 0.05
    """Share of groups held out where clips have no splits and no fold is named."""
    validate_every: int = 0
    """Steps between validations; 0 means once an epoch, but not more often than every 50 steps."""
    checkpoint_every_s: float = 120.0
    """Seconds between checkpoints."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights stay in float32. By default bf16 where the processor multiplies it and passes a self-test."""
    parts: int = 1
    """Parts of the cache that fill places of their own in every batch, so that a machine needs no other part; 1 shuffles all clips together."""
    seed: int = 0
    """Every draw follows from this number."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for training in (self.stage_one, self.stage_two):
            fits = self.parts >= 1 and training.batch % self.parts == 0
            _require(
                fits,
                f"pretrain.parts is {self.parts}, expected a number by which the batch of {training.batch} can be divided.",
            )
        even = not self.pairs or (
            self.stage_two.batch // self.parts % 2 == 0 and self.stage_two.batch >= 4
        )
        _require(
            even,
            f"pretrain.contrast_of 'group' needs two pairs, and no half one in a part: a batch of {self.stage_two.batch} in {self.parts} parts is none.",
        )
        _require(
            self.extractor_rate >= 0,
            f"pretrain.extractor_rate is {self.extractor_rate}, expected 0 or more.",
        )
        _require(
            0 <= self.mask_ends <= 1,
            f"pretrain.mask_ends is {self.mask_ends}, expected a share between 0 and 1.",
        )
        _require(
            0 < self.loss_share <= 1,
            f"pretrain.loss_share is {self.loss_share}, expected above 0 and at most 1.",
        )
        _require(
            0 < self.mask_ratio < 1,
            f"pretrain.mask_ratio is {self.mask_ratio}, expected between 0 and 1.",
        )
        _require(
            self.patches >= 2,
            f"pretrain.patches is {self.patches}, expected at least 2: one to see and one to fill in.",
        )
        for name in ("validate_every", "checkpoint_every_s"):
            _require(
                getattr(self, name) >= 0,
                f"pretrain.{name} is {getattr(self, name)}, expected 0 or more.",
            )
        _require(
            0 <= self.validation_fraction < 1, "pretrain.validation_fraction must be in [0, 1)."
        )

    @property
    def pairs(self) -> bool:
        """Whether two crops of a group stand side by side in stage II."""
        return self.contrast_of == "group"


@dataclass(frozen=True)
class FinetuneConfig:
    """Partial fine-tuning on a task (4.5)."""

    training: TrainingConfig = TrainingConfig(epochs=100.0, learning_rate=1e-5)
    """The loop; 1e-5 is the rate of Figure 2."""
    head_learning_rate: float | None = None
    """Learning rate of the head, if it differs from the body's."""
    try_rates: tuple[float, ...] = ()
    """Learning rates of the body tried in turn; the one that validates best is tested. None: the loop's own rate alone."""
    select: Literal["metric", "loss"] = "metric"
    """What the best weights are chosen by on validation; of few clips, the loss tells more."""
    readout: Literal["cls", "mean"] = "cls"
    """What the head sees: the CLS token (Fig. 2), or the mean over patches."""
    validate_every: int = 10
    """Steps between validations."""
    patience: int = 200
    """Steps without a better validation score after which training stops."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Arithmetic of the forward and backward pass; weights stay in float32. By default bf16 where the processor multiplies it and passes a self-test."""
    folds: Literal["one", "all"] = "one"
    """Where clips have folds and no split: test one of them, or each in turn."""
    test_fold: int | None = None
    """The fold that is tested; the last if not given."""
    seeds: int = 1
    """Repeated runs with seeds seed, seed + 1, ...; their mean score is reported."""
    seed: int = 0
    """Every draw follows from this number."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            self.validate_every >= 1 and self.patience >= 1,
            "finetune.validate_every and patience must be at least 1.",
        )
        _require(
            all(rate > 0 for rate in self.try_rates),
            f"finetune.try_rates is {self.try_rates}, expected rates above 0.",
        )
        _require(self.seeds >= 1, f"finetune.seeds is {self.seeds}, expected at least 1.")


@dataclass(frozen=True)
class EmbedConfig:
    """From a sequence to an embedding."""

    pooling: Literal["cls", "mean", "mean+max", "mean+std"] = "mean+std"
    """How a sequence becomes one vector."""
    layers: tuple[int, ...] = (-1,)
    """Which layers are pooled and concatenated: 0 is the extractor's vectors, 1 the first bottleneck layer, -1 the last."""
    summaries: tuple[str, ...] = ()
    """Appended to the pooled layers: descriptors of a window as a whole, rows of :data:`patchifier.nn.descriptors.DESCRIPTORS`, and estimates,
    of :data:`patchifier.nn.equivariant.ESTIMATES`."""
    time: Literal["windows", "whole"] = "windows"
    """Overlapping windows of trained length, averaged; or one pass with interpolated positions."""
    hop_patches: int = 20
    """Patches between the starts of windows, or their length if that is less; by default they overlap by a fifth."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(
            self.hop_patches >= 1, f"embed.hop_patches is {self.hop_patches}, expected at least 1."
        )
        _require(len(self.layers) >= 1, "embed.layers is empty, expected at least one layer.")

    @property
    def numbers(self) -> tuple[Any, ...]:
        """What decides which numbers an embedding is put together from, before they are standardised."""
        return self.pooling, tuple(self.layers), tuple(self.summaries)


@dataclass(frozen=True)
class Config:
    """Everything."""

    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        """Check that the sections fit together."""
        _require(
            self.spectrogram.bands == self.model.bands,
            f"spectrogram.bands ({self.spectrogram.bands}) and model.bands ({self.model.bands}) must be the same.",
        )
        _require(
            self.spectrogram.pitch_bands == self.model.pitch_bands,
            f"spectrogram.pitch_bands ({self.spectrogram.pitch_bands}) and model.pitch_bands ({self.model.pitch_bands}) must be the same.",
        )
        _require(
            self.pretrain.patches <= self.model.positions,
            f"pretrain.patches ({self.pretrain.patches}) needs as many model.positions ({self.model.positions}).",
        )
        _require(
            not self.model.predictor_layers or self.pretrain.extract == "visible",
            "pretrain.extract 'all' has no meaning with model.predictor_layers: what the bottleneck does not see is not extracted.",
        )

    @property
    def without_length(self) -> "Config":
        """The same settings for pre-training of any length."""
        stages = {
            name: getattr(self.pretrain, name).without_length for name in ("stage_one", "stage_two")
        }
        return dataclasses.replace(self, pretrain=dataclasses.replace(self.pretrain, **stages))


# --- JSON in and out ---

ADDED: dict[str, dict[str, Any]] = {
    "model": {"vector_norm": "none"},
    "pretrain": {"extractor_rate": 1.0, "loss_share": 1.0},
}
"""Fields added since the first edition, with the values that mean what that edition did."""


Section = TypeVar("Section")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries, lists and numbers, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def update(config: Section, changes: dict[str, Any], *, where: str = "") -> Section:
    """Return a copy of a config with some fields changed.

    Parameters
    ----------
    config : a frozen dataclass of this module
        What to start from.
    changes : dict
        Nested as the config is; only the fields that differ.
    where : str
        Dotted name of the config inside its parent, for messages.

    Raises
    ------
    RequestError
        For a field that does not exist (the nearest name is suggested), a value of the wrong type or out of range.
    """
    kinds = typing.get_type_hints(type(config))
    values = {}
    for name, value in changes.items():
        path = f"{where}.{name}" if where else name
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of: {', '.join(kinds)}."
            raise RequestError(f"config has no field {path!r}. {hint}")
        if dataclasses.is_dataclass(kinds[name]):
            _require(
                isinstance(value, dict),
                f"config field {path!r} is {value!r}, expected a group of fields in braces.",
            )
            values[name] = update(getattr(config, name), value, where=path)
        else:
            values[name] = _convert(value, kinds[name], path)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _convert(value: Any, kind: Any, path: str) -> Any:
    """Check a JSON value against an annotation of this module; a list becomes a tuple, an int a float where one is meant."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        return _convert(value, next(part for part in parts if part is not type(None)), path)
    if origin is Literal:
        _require(
            value in parts,
            f"config field {path!r} is {value!r}, expected one of {', '.join(map(repr, parts))}.",
        )
        return value
    if origin is tuple:
        fits = isinstance(value, list | tuple) and (
            parts[-1] is Ellipsis or len(parts) == len(value)
        )
        _require(
            fits,
            f"config field {path!r} is {value!r}, expected a list of {'numbers' if parts[-1] is Ellipsis else len(parts)}.",
        )
        return tuple(_convert(item, parts[0], path) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    _require(
        right and (kind is not float or math.isfinite(value)),
        f"config field {path!r} is {value!r}, expected {kind.__name__}.",
    )
    return value


def with_added(values: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """Complete a config that an earlier version wrote whole: fields added since get the values that mean what that version did.

    Parameters
    ----------
    values : dict
        Nested as a :class:`Config`.
    whole : bool
        Whether `values` is known to be a whole config. Otherwise a section counts as whole if it has every field of the first edition, so
        that a recipe, which states a few fields, gets today's defaults.
    """
    completed = dict(values)
    for section, added in ADDED.items():
        given = values.get(section)
        first = {
            field.name for field in dataclasses.fields(getattr(Config(), section))
        } - added.keys()
        if isinstance(given, dict) and (whole or first <= given.keys()):
            completed[section] = added | given
    return completed


def without_added(config: Config) -> dict[str, dict[str, Any]]:
    """Return a config as plain dictionaries; a section that means what the first edition did lacks the fields added since."""
    values = to_dict(config)
    for section, added in ADDED.items():
        if added.items() <= values[section].items():
            values[section] = {
                name: value for name, value in values[section].items() if name not in added
            }
    return values


def recipes() -> dict[str, Path]:
    """Files of the recipes by their names: packed into the wheel, or beside the sources."""
    packed = Path(__file__).parent / "recipes"
    return {
        path.stem: path
        for path in sorted(
            (packed if packed.exists() else Path(__file__).parents[2] / "recipes").glob("*.json")
        )
    }


def read_changes(path: str | Path) -> dict[str, Any]:
    """Read a file that states part of a config; the name of a recipe is its file.

    Raises
    ------
    RequestError
        If the file is missing or is not a JSON object.
    """
    try:
        changes = json.loads(recipes().get(str(path), Path(path)).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"cannot read config file {path} ({error.strerror}), expected a file, or a recipe's name such as 'base'."
        ) from error
    except ValueError as error:
        raise RequestError(f"config file {path} is not JSON: {error}.") from error
    if isinstance(changes, dict):
        for header in (
            "checkpoint",
            "model_type",
        ):  # a model's config.json is a config with a header
            changes.pop(header, None)
        changes.pop("why", None)  # a recipe gives its reason
    _require(
        isinstance(changes, dict),
        f"config file {path} holds {type(changes).__name__}, expected a JSON object.",
    )
    return with_added(changes)


def digest(*parts: Any) -> str:
    """Short hash of configs and plain values; the same values give the same hash in any process."""
    values = [to_dict(part) if dataclasses.is_dataclass(part) else part for part in parts]
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
