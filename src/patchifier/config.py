"""Every setting: the numbers of the paper, and every decision that it leaves open.

Frozen dataclasses of plain values, written to and read from JSON. What follows from other fields is
a property, below the fields. Standard library only, so that ``--help`` is instant. Section numbers
refer to the paper, "Spectrograms are sequences of patches"; DESIGN.md gives the reason for each
default.

A file for ``--config`` states any part of a :class:`Config`; the rest keeps its default::

    {"pretrain": {"mask_ratio": 0.9}}

Names of the first edition are read too (:mod:`patchifier.config_names`).
"""

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import itertools
import json
import math
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from patchifier.config_names import fixed_values, new_name, with_new_names, with_old_names

PITCH_N_FFT = 8192  # of pitch bands: mel bands lie 51 Hz apart below 1 kHz, without semitones
PITCH_PER_OCTAVE = 36  # pitch bands
PITCH_F_MIN_HZ = 55.0  # centre of the lowest pitch band, A1
DECAY_SHARE = 0.2  # of the steps of a trapezoid, over which its rate falls


class RequestError(ValueError):
    """The request is invalid: the message names the fault, what was expected and what to do."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RequestError(message)


def _require_at_least(least: float, config: Any, section: str, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(config, name)
        expected = f"expected {least} or more"
        _require(value >= least, f"{section}.{name} is {value}, {expected}.")


@dataclass(frozen=True)
class SpectrogramConfig:
    """From a waveform to a log-mel (4.3, 4.4).

    Examples
    --------
    >>> config = SpectrogramConfig(n_pitch_bands=216)
    >>> config.n_bands, round(config.frame_s, 4)
    (280, 0.0232)
    """

    sample_rate: int = 22_050
    """Sample rate in Hz; all audio is resampled to it (4.4)."""
    n_mels: int = 64
    """Number of mel bands (4.4)."""
    hop_length: int = 512
    """Samples between frames (4.4)."""
    n_fft: int = 2048
    """FFT size in samples, even; the paper gives none."""
    window: Literal["hann", "hamming"] = "hann"
    """Analysis window, n_fft samples long."""
    mel_scale: Literal["slaney", "htk"] = "slaney"
    """Formula of the mel scale."""
    f_min_hz: float = 0.0
    """Lower edge of the lowest mel band, in Hz."""
    f_max_hz: float = 11_025.0
    """Upper edge of the highest mel band, in Hz, at most half the sample rate."""
    reference: Literal["absolute", "max"] = "absolute"
    """Reference of 0 dB: full scale, or the maximum of the clip."""
    min_db: float = -100.0
    """Lower levels, in dB, are raised to this one."""
    top_db: float | None = None
    """If given, levels more than this many dB below the clip's maximum are raised to that."""
    db_scale: float = 0.01
    """Factor on decibels (4.3)."""
    n_pitch_bands: int = 0
    """Number of pitch bands behind the mel bands, a third of a semitone each; none in the paper."""
    pitch_hop: int = 1
    """Frames between the long FFTs of pitch bands; each stands for so many frames."""

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        _require_sizes("spectrogram", self)
        _require_at_least(1, self, "spectrogram", ("n_mels", "hop_length", "pitch_hop"))
        _require_at_least(0, self, "spectrogram", ("n_pitch_bands",))
        _require(
            self.n_fft % 2 == 0 and self.n_fft >= self.hop_length,
            f"spectrogram.n_fft is {self.n_fft}, expected an even number of at least hop_length "
            f"({self.hop_length}).",
        )
        _require(
            0 <= self.f_min_hz < self.f_max_hz <= self.sample_rate / 2,
            f"spectrogram.f_min_hz ({self.f_min_hz}) and f_max_hz ({self.f_max_hz}) must lie in "
            f"order between 0 and half the sample rate ({self.sample_rate / 2:g} Hz).",
        )
        _require(
            self.reference == "absolute" or self.top_db is not None,
            "spectrogram.reference 'max' needs top_db, for example 80.",
        )
        if self.n_pitch_bands:
            self._require_pitch()
        _require_costs(self)

    def _require_pitch(self) -> None:
        _require(
            self.n_fft <= PITCH_N_FFT,
            f"spectrogram.n_fft is {self.n_fft}, expected at most {PITCH_N_FFT} with pitch bands.",
        )
        _require(
            (self.pitch_hop - 1) * self.hop_length % 4 == 0,
            f"spectrogram.pitch_hop is {self.pitch_hop}: the middle of so many frames lies between "
            f"samples with a hop_length of {self.hop_length}, expected 1, or a multiple of 4 as "
            "hop_length.",
        )
        highest_hz = self.pitch_f_max_hz
        _require(
            highest_hz <= self.sample_rate / 2,
            f"spectrogram.n_pitch_bands is {self.n_pitch_bands}: pitch bands from {PITCH_F_MIN_HZ} "
            f"Hz reach {highest_hz:.0f} Hz, expected at most half the sample rate.",
        )

    # --- computed ---

    @property
    def n_bands(self) -> int:
        """Number of rows of a log-mel: mel bands, then pitch bands."""
        return self.n_mels + self.n_pitch_bands

    @property
    def pitch_f_max_hz(self) -> float:
        """Upper end of the pitch bands in Hz."""
        return PITCH_F_MIN_HZ * 2 ** (self.n_pitch_bands / PITCH_PER_OCTAVE)

    @property
    def silence(self) -> float:
        """Value of digital silence and of padding: -1 in the paper's setting, never 0."""
        absolute = self.reference == "absolute"
        return self.db_scale * (self.min_db if absolute else -(self.top_db or 0.0))

    @property
    def without_pitch(self) -> "SpectrogramConfig":
        """The same mel bands alone."""
        return dataclasses.replace(self, n_pitch_bands=0, pitch_hop=1)

    @property
    def frame_samples(self) -> int:
        """Length of the longest FFT in samples."""
        return max(self.n_fft, PITCH_N_FFT if self.n_pitch_bands else 0)

    @property
    def frame_s(self) -> float:
        """Seconds between frames."""
        return self.hop_length / self.sample_rate


@dataclass(frozen=True)
class ModelConfig:
    """Feature extractor, bottleneck and decoder (4.1, 4.4).

    Examples
    --------
    >>> ModelConfig(embed_dim=192, n_heads=6).channels
    (16, 32, 64, 128, 256)
    >>> ModelConfig(embed_dim=192, n_heads=7)
    Traceback (most recent call last):
        ...
    patchifier.config.RequestError: model.embed_dim (192) must be a multiple of model.n_heads (7).
    """

    patch_frames: int = 32
    """Length of a patch in frames (4.4)."""
    max_patches: int = 25
    """Longest sequence with learnt positions, in patches (4.4)."""
    channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Output channels of each down module: 16 at first, increasing (4.4)."""
    n_convolutions: int = 2
    """3 x 3 convolutions in each down module, the first of stride 2 (4.1)."""
    map_pooling: Literal["flatten", "mean"] = "flatten"
    """How the last feature map becomes a patch vector: flattened, or the mean over its cells."""
    embed_dim: int = 256
    """Size D of a patch vector and of the bottleneck (4.4)."""
    n_layers: int = 8
    """Transformer layers of the bottleneck (4.4)."""
    n_heads: int = 4
    """Attention heads of each layer (4.4)."""
    mlp_dim: int = 1024
    """Hidden size of each layer's feed-forward network."""
    dropout: float = 0.1
    """Dropout probability of the bottleneck."""
    position_embedding: Literal["bert", "plain"] = "bert"
    """BERT's (with a position for CLS, LayerNorm and dropout); or positions of patches alone."""
    extractor: Literal["convolutions", "transformer"] = "convolutions"
    """From a patch to a vector: down modules (4.1), or a transformer over columns of 4 frames."""
    align: Literal["mlp", "linear"] = "mlp"
    """Network between bottleneck and decoder, in stage II only (4.4)."""
    decoder_channels: tuple[int, ...] | None = None
    """Input channels of each up layer of the decoder; by default `channels` reversed."""
    decoder_norm: Literal["none", "batch"] = "none"
    """Normalisation after the decoder's convolutions: "only upsampling and convolution" (4.4)."""
    n_predictor_layers: int = 0
    """If above 0, the bottleneck encodes visible patches alone, and a predictor of this many layers
    has the mask tokens; 0 in the paper."""
    estimators: tuple[Literal["tonic", "tempo"], ...] = ()
    """Estimators beside the network (:mod:`patchifier.nn.equivariant`); none in the paper."""
    norm_first: bool = False
    """LayerNorm before attention and feed-forward network (pre-norm), not after, as in BERT."""
    vector_norm: Literal["layer", "none"] = "layer"
    """LayerNorm without weights of patch vectors, and positions from N(0, 1); or none, and
    positions from N(0, 0.02)."""

    def __post_init__(self) -> None:
        """Check that the numbers fit together."""
        _require_sizes("model", self)
        sizes = "patch_frames max_patches n_convolutions embed_dim n_layers n_heads mlp_dim"
        _require_at_least(1, self, "model", sizes.split())
        _require_at_least(0, self, "model", ("n_predictor_layers",))
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
        _require(
            self.embed_dim % self.n_heads == 0,
            f"model.embed_dim ({self.embed_dim}) must be a multiple of model.n_heads "
            f"({self.n_heads}).",
        )
        known = set(self.estimators) <= {"tonic", "tempo"}
        _require(
            known and len(set(self.estimators)) == len(self.estimators),
            f"model.estimators is {list(self.estimators)}, expected some of tonic, tempo, each "
            "once.",
        )
        self._require_extractor()

    def _require_extractor(self) -> None:
        transforms, depth = self.extractor == "transformer", len(self.channels)
        _require(
            not transforms or self.patch_frames % 4 == 0,
            f"model.patch_frames is {self.patch_frames}, expected a multiple of 4 with a "
            "transformer over columns of 4.",
        )
        _require(
            self.map_pooling == "flatten" or transforms or self.channels[-1] == self.embed_dim,
            f"model.map_pooling 'mean' gives {self.channels[-1]} numbers, so model.embed_dim "
            f"({self.embed_dim}) must be the same.",
        )
        _require(
            self.decoder_channels is None or len(self.decoder_channels) == depth,
            f"model.decoder_channels needs {depth} numbers, one for each up layer.",
        )


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentations of pre-training (4.4), and some beyond the paper.

    Examples
    --------
    >>> AugmentConfig().shifts_pitch, AugmentConfig(pitch_shift=(-2.0, 2.0)).shifts_pitch
    (False, True)
    >>> AugmentConfig().changes_levels, AugmentConfig(gain_db=(-20.0, 6.0)).changes_levels
    (False, True)
    """

    time_stretch: tuple[float, float] = (0.9, 1.2)
    """Range of the factor on a clip's duration (random scaling)."""
    intensity: tuple[float, float] = (0.8, 1.2)
    """Range of the factor on log-mel values (random intensity)."""
    intensity_per: Literal["element", "band", "spectrogram"] = "element"
    """What has an intensity factor of its own."""
    pitch_shift: tuple[float, float] = (0.0, 0.0)
    """Range of a clip's shift in semitones; none in the paper."""
    gain_db: tuple[float, float] = (0.0, 0.0)
    """Range of a clip's gain in dB, added to all rows; none in the paper."""
    equaliser_db: float = 0.0
    """Largest boost or cut, in dB, of a clip's smooth random curve over frequency; 0 for none."""
    low_pass_hz: tuple[float, float] | None = None
    """Range of the cutoff frequency of a quarter of the clips, above which rows fall by 24 dB an
    octave; none by default."""
    noise_db: tuple[float, float] | None = None
    """Range of the level of noise in a quarter of the clips, white or pink, in dB relative to the
    clip's mean power; none by default."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("time_stretch", "intensity"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high, f"augment.{name} is [{low}, {high}], expected 0 < low <= high."
            )
        _require(
            self.pitch_shift[0] <= self.pitch_shift[1],
            f"augment.pitch_shift is {list(self.pitch_shift)}, expected low <= high.",
        )
        self._require_levels()

    def _require_levels(self) -> None:
        for name in ("gain_db", "noise_db", "low_pass_hz"):
            given = getattr(self, name)
            _require(
                given is None or given[0] <= given[1],
                f"augment.{name} is {list(given or ())}, expected low <= high.",
            )
        _require_at_least(0, self, "augment", ("equaliser_db",))
        _require(
            self.low_pass_hz is None or self.low_pass_hz[0] > 0,
            f"augment.low_pass_hz is {list(self.low_pass_hz or ())}, expected frequencies above 0.",
        )

    # --- computed ---

    @property
    def shifts_pitch(self) -> bool:
        """Whether there is a shift to draw."""
        return self.pitch_shift != (0.0, 0.0)

    @property
    def changes_levels(self) -> bool:
        """Whether there is a gain, an equaliser, a low-pass or noise to draw."""
        added = (self.gain_db != (0.0, 0.0), self.equaliser_db > 0)
        return any(added) or self.low_pass_hz is not None or self.noise_db is not None


@dataclass(frozen=True)
class TrainingConfig:
    """One training loop (4.4).

    Examples
    --------
    >>> TrainingConfig(epochs=10.0, batch_size=32).total_steps(1000)  # of 1,000 clips
    313
    >>> TrainingConfig(steps=500).total_steps(1000)
    500
    """

    epochs: float = 1000.0
    """Passes over the training clips (4.4); ignored if steps is given."""
    steps: int = 0
    """Optimiser steps; 0 computes them from epochs."""
    batch_size: int = 32
    """Clips in a step, over all devices (4.4)."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """AdamW (4.4); or Muon for matrices and kernels, with AdamW for the rest."""
    learning_rate: float = 1e-4
    """Peak learning rate (4.4)."""
    weight_decay: float = 0.01
    """Weight decay, on matrices and kernels only."""
    schedule: Literal["constant", "cosine", "trapezoid"] = "constant"
    """Learning rate after the warm-up: constant; a half cosine to 0; or constant, then linear to 0
    over the last fifth of the steps."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises from 0."""
    max_grad_norm: float = 0.0
    """Gradients are clipped to this norm; 0 does not clip."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require(self.batch_size >= 1, f"batch_size is {self.batch_size}, expected at least 1.")
        _require(self.steps >= 0 and self.epochs > 0, "steps must be 0 or more and epochs above 0.")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}, expected 0 or more.")
        _require(
            self.learning_rate > 0, f"learning_rate is {self.learning_rate}, expected above 0."
        )

    # --- computed ---

    def total_steps(self, clips: int) -> int:
        """Optimiser steps of a run: `steps` if set, else ceil(epochs * clips / batch_size)."""
        return self.steps or math.ceil(self.epochs * clips / self.batch_size)

    def flat_steps(self, total: int) -> int:
        """Steps, of `total`, before the learning rate depends on how many there are."""
        if self.schedule == "constant":
            return total
        return total - math.ceil(DECAY_SHARE * total) if self.schedule == "trapezoid" else 0

    @property
    def without_length(self) -> "TrainingConfig":
        """The same training of any length; a cosine depends on its length from the first step."""
        plain = TrainingConfig()
        return (
            self
            if self.schedule == "cosine"
            else dataclasses.replace(self, steps=plain.steps, epochs=plain.epochs)
        )


@dataclass(frozen=True)
class PretrainConfig:
    """The two stages of pre-training (4.2).

    Examples
    --------
    >>> config = PretrainConfig(stages="two", mask_ratio=0.6)
    >>> config.stage_two.learning_rate, config.objectives
    (0.0001, ('pixels',))
    """

    stages: Literal["both", "one", "two"] = "both"
    """Stages that run; "two" alone starts from new weights or from --init."""
    stage_one: TrainingConfig = TrainingConfig()
    """Stage I: autoencoder of single patches."""
    stage_two: TrainingConfig = TrainingConfig()
    """Stage II: prediction of masked patches."""
    extractor_lr_scale: float = 1.0
    """Factor on the extractor's learning rate in stage II; 0 freezes the extractor."""
    n_patches: int = 25
    """Patches drawn from each spectrogram (4.4)."""
    stage_one_patches: Literal["independent", "one"] = "independent"
    """Patches of stage I: `n_patches` at independent positions (4.4), or a single one (4.2)."""
    stage_two_patches: Literal["consecutive", "whole"] = "consecutive"
    """Patches of stage II: `n_patches` consecutive ones (4.4), or the whole spectrogram (4.2)."""
    mask_ratio: float = 0.75
    """Share of patch vectors that are masked, between 0 and 1; "a high ratio" (4.2)."""
    visible_span_ratio: float = 0.0
    """Share of clips whose visible patches are consecutive, not at random positions."""
    loss_patches: Literal["masked", "all"] = "masked"
    """Patches in the loss of stage II."""
    loss_share: float = 1.0
    """Share of those that a training step decodes, drawn anew for each step, above 0 and at most 1:
    the same gradient on average, in less time."""
    extracted_patches: Literal["visible", "all"] = "visible"
    """Patches that the extractor computes in stage II; vectors of masked patches are not used."""
    objectives: tuple[str, ...] = ("pixels",)
    """Losses of stage II, rows of :mod:`patchifier.train.objectives`.

    Several have learnt weights.
    """
    contrast_positives: Literal["clip", "group"] = "clip"
    """Positive pairs of the objective "contrast": masked and visible patches of a clip, or two
    clips of a group, such as a track."""
    teacher_features: str = ""
    """Folder of another model's vectors for the objective "distil", one file a clip, as
    ``features:DIR``."""
    note_labels: str = ""
    """Folder of the notes of rendered clips, for the objectives of :mod:`patchifier.train.notes`,
    one JSON file a clip; clips without a file have no loss from these objectives."""
    reconstruction_target: Literal["augmented", "clean"] = "augmented"
    """Target of the reconstruction and of descriptors: the model's input, or the log-mel before
    random intensity, gain, equaliser, low-pass and noise."""
    validation_fold: int | None = None
    """Fold for validation, if clips have folds."""
    validation_fraction: float = 0.05
    """Share of groups for validation, if clips have no split and no fold is given; below 1."""
    validate_every: int = 0
    """Steps between validations; 0 is once an epoch, but at least 50 steps."""
    checkpoint_every_s: float = 120.0
    """Seconds between checkpoints."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Precision of forward and backward pass; weights are float32. "auto" is bf16 where the
    processor has it and passes a self-test."""
    n_cache_parts: int = 1
    """Parts of the cache that each fill a fixed slice of every batch, so that a machine needs one
    part only; 1 shuffles all clips together."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_at_least(1, self, "pretrain", ("n_cache_parts",))
        _require_at_least(2, self, "pretrain", ("n_patches",))  # one visible, one masked
        _require_at_least(
            0, self, "pretrain", ("extractor_lr_scale", "validate_every", "checkpoint_every_s")
        )
        _require(
            0 <= self.visible_span_ratio <= 1,
            f"pretrain.visible_span_ratio is {self.visible_span_ratio}, expected between 0 and 1.",
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
            0 <= self.validation_fraction < 1, "pretrain.validation_fraction must be in [0, 1)."
        )
        self._require_batches()

    def _require_batches(self) -> None:
        for training in (self.stage_one, self.stage_two):
            _require(
                training.batch_size % self.n_cache_parts == 0,
                f"pretrain.n_cache_parts is {self.n_cache_parts}, expected a number by which the "
                f"batch of {training.batch_size} can be divided.",
            )
        batch_size = self.stage_two.batch_size
        even = batch_size // self.n_cache_parts % 2 == 0 and batch_size >= 4
        _require(
            even or not self.pairs,
            "pretrain.contrast_positives 'group' needs two pairs or more in a batch, and whole "
            f"pairs in each part: a batch of {batch_size} in {self.n_cache_parts} parts has none.",
        )

    # --- computed ---

    @property
    def pairs(self) -> bool:
        """Whether a batch of stage II holds pairs of clips of a group."""
        return self.contrast_positives == "group"

    @property
    def is_self_supervised(self) -> bool:
        """Whether neither notes nor another model's vectors are targets."""
        return not (self.note_labels or self.teacher_features)


@dataclass(frozen=True)
class FinetuneConfig:
    """Partial fine-tuning on a task (4.5).

    Examples
    --------
    >>> config = FinetuneConfig(learning_rates=(1e-5, 1e-4), n_seeds=3)
    >>> config.training.epochs, config.pooling
    (100.0, 'cls')
    """

    training: TrainingConfig = TrainingConfig(epochs=100.0, learning_rate=1e-5)
    """Training loop; 1e-5 is the learning rate of Figure 2."""
    head_learning_rate: float | None = None
    """Learning rate of the head, if it differs from that of the network."""
    learning_rates: tuple[float, ...] = ()
    """Candidates for the learning rate of the network: the best on validation is tested. If empty,
    that of the training loop."""
    select_by: Literal["metric", "loss"] = "metric"
    """Validation score by which the best weights are selected; the loss is finer for few clips."""
    pooling: Literal["cls", "mean"] = "cls"
    """Input of the head: the CLS token (Fig. 2), or the mean over patches."""
    validate_every: int = 10
    """Steps between validations."""
    patience: int = 200
    """Steps without a better validation score after which training stops."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """Precision of forward and backward pass; weights are float32. "auto" is bf16 where the
    processor has it and passes a self-test."""
    folds: Literal["one", "all"] = "one"
    """Folds that are tested, if clips have folds and no split: one, or each in turn."""
    test_fold: int | None = None
    """First fold that is tested; by default the last."""
    n_seeds: int = 1
    """Repeated runs with seeds `seed`, `seed` + 1, ...; their mean score is reported."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_at_least(1, self, "finetune", ("validate_every", "patience", "n_seeds"))
        _require(
            all(rate > 0 for rate in self.learning_rates),
            f"finetune.learning_rates is {self.learning_rates}, expected rates above 0.",
        )


@dataclass(frozen=True)
class EmbedConfig:
    """From a sequence to an embedding.

    Examples
    --------
    >>> Config(embed=EmbedConfig(pooling="mean")).embedding_size
    256
    >>> Config(embed=EmbedConfig(pooling="mean+std")).embedding_size
    512
    """

    pooling: Literal["cls", "mean", "mean+max", "mean+std"] = "mean+std"
    """From a sequence to one vector: CLS, or statistics over patches."""
    layers: tuple[int, ...] = (-1,)
    """Layers that are pooled and concatenated: 0 is the extractor, 1 the first layer of the
    bottleneck, -1 the last."""
    summaries: tuple[str, ...] = ()
    """Features appended to the pooled layers: descriptors of a window
    (:data:`patchifier.nn.descriptors.DESCRIPTORS`) and estimates
    (:data:`patchifier.nn.equivariant.ESTIMATES`)."""
    whiten: bool = False
    """Standardise embeddings with statistics of the training clips, computed after training."""
    n_components: int = 0
    """Principal components kept of the pooled layers, if `whiten`.

    0 keeps the layers as they are.
    """
    n_similarity: int = 0
    """Length of the slice "similarity", which comes first, if `whiten`: principal components of
    what the target "distil" learnt to predict from the last layer. Music that sounds alike lies
    near in them. 0 for none."""
    whole_clip: bool = False
    """One pass over the whole clip with interpolated positions, instead of the mean over windows of
    trained length."""
    hop_patches: int = 20
    """Patches between the starts of windows, at most the length of a window."""
    silence_db: float | None = -70.0
    """A patch is silent if no mel band of it is above this level in dB. Silent patches are left out
    of an embedding, unless the whole piece is silent. None: all patches count, as in the first
    edition."""
    mix_lfe: bool = False
    """Mix the low-frequency effects of a surround file like its other channels, as the first
    edition did. Otherwise they are left out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        _require_at_least(1, self, "embed", ("hop_patches",))
        _require_at_least(0, self, "embed", ("n_components", "n_similarity"))
        _require(len(self.layers) >= 1, "embed.layers is empty, expected at least one layer.")
        for name in ("n_components", "n_similarity"):
            value = getattr(self, name)
            _require(
                self.whiten or not value, f"embed.{name} is {value}, which needs embed.whiten."
            )

    # --- computed ---

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The fields on which the numbers of a window's embedding depend."""
        whitening = self.whiten, self.n_components, self.n_similarity
        return self.pooling, self.layers, self.summaries, *whitening

    @property
    def plain(self) -> "EmbedConfig":
        """The same embedding without whitening."""
        return dataclasses.replace(self, whiten=False, n_components=0, n_similarity=0)


# squared length of "similarity" over that of all other numbers: the cosine of vectors is mostly its
SIMILARITY_RATIO = 8.0

# Raised when the same log-mel gives other summaries: stored vectors are then not comparable.
DESCRIPTORS_VERSION = 2


def summary_sizes(n_mels: int) -> dict[str, int]:
    """Length of every feature that ``embed.summaries`` may hold."""
    return {
        "harmony": 72,
        "mode": 40,
        "colour": 2 * n_mels,
        "texture": 120,
        "pulse": 128,
        "rhythm": 32,
        "tonic": 36,
        "degrees": 72,
        "tempo": 64,
        "metre": 128,
    }


@dataclass(frozen=True)
class Config:
    """All sections.

    Examples
    --------
    >>> config = Config(model=ModelConfig(n_layers=4))
    >>> config.spectrogram.hop_length, config.model.n_layers, config.pretrain.mask_ratio
    (512, 4, 0.75)
    >>> config.embedding_size, config.embedding_slices
    (512, {'layers': slice(0, 512, None)})
    """

    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        """Check that the sections fit together."""
        _require(
            self.pretrain.n_patches <= self.model.max_patches,
            f"pretrain.n_patches ({self.pretrain.n_patches}) needs as many model.max_patches "
            f"({self.model.max_patches}).",
        )
        _require(
            not self.model.n_predictor_layers or self.pretrain.extracted_patches == "visible",
            "pretrain.extracted_patches 'all' has no meaning with model.n_predictor_layers: the "
            "bottleneck has no masked patches.",
        )
        self._require_bands()

    def _require_bands(self) -> None:
        n_mels, n_pitch_bands = self.spectrogram.n_mels, self.spectrogram.n_pitch_bands
        frames, depth = self.model.patch_frames, len(self.model.channels)
        _require(
            n_mels % 2**depth == 0 and frames % 2**depth == 0,
            f"a patch of {n_mels} x {frames} cannot be halved {depth} times: spectrogram.n_mels "
            "and "
            f"model.patch_frames must be multiples of {2**depth}.",
        )
        _require(
            n_pitch_bands % 6 == 0 and (not n_pitch_bands or frames % 4 == 0),
            f"spectrogram.n_pitch_bands ({n_pitch_bands}) must be a multiple of 6, and "
            f"model.patch_frames ({frames}) then one of 4.",
        )
        _require(
            n_pitch_bands > 0 or "tonic" not in self.model.estimators,
            "model.estimators holds 'tonic', which needs pitch bands: set "
            "spectrogram.n_pitch_bands.",
        )

    # --- computed ---

    @property
    def pooled_size(self) -> int:
        """Length of the pooled layers, before whitening."""
        statistics = 2 if "+" in self.embed.pooling else 1
        return self.model.embed_dim * len(self.embed.layers) * statistics

    @property
    def summary_sizes(self) -> dict[str, int]:
        """Length of each summary, in the order of ``embed.summaries``."""
        sizes = summary_sizes(self.spectrogram.n_mels)
        for name in self.embed.summaries:
            _require(
                name in sizes,
                f"embed.summaries holds {name!r}, expected some of {', '.join(sizes)}.",
            )
        return {name: sizes[name] for name in self.embed.summaries}

    @property
    def raw_size(self) -> int:
        """Length of an embedding before whitening."""
        return self.pooled_size + sum(self.summary_sizes.values())

    @property
    def embedding_size(self) -> int:
        """Length E of an embedding."""
        summaries = self.raw_size - self.pooled_size
        layers = self.embed.n_components or self.pooled_size
        return self.embed.n_similarity + layers + summaries

    @property
    def embedding_slices(self) -> dict[str, slice]:
        """Slices of an embedding: "similarity" if there is one, "layers", each summary."""
        layers = self.embed.n_components or self.pooled_size
        sizes = {"layers": layers} | self.summary_sizes
        if self.embed.n_similarity:
            sizes = {"similarity": self.embed.n_similarity} | sizes
        ends = itertools.accumulate(sizes.values())
        named = zip(sizes.items(), ends, strict=True)
        return {name: slice(end - size, end) for (name, size), end in named}

    @property
    def without_length(self) -> "Config":
        """The same settings for pre-training of any length."""
        stages = {
            name: getattr(self.pretrain, name).without_length for name in ("stage_one", "stage_two")
        }
        return dataclasses.replace(self, pretrain=dataclasses.replace(self.pretrain, **stages))


# --- bounds: a config from elsewhere cannot take the machine's memory or time ---

LARGEST = 2**16  # size in a model or a spectrogram
MOST = {"sample_rate": 768_000}  # sizes that may be larger
MOST_MODULES = 1_000  # layers or convolutions, one after another
MOST_ITEMS = 1_000  # of a list in a config


def _require_sizes(section: str, config: Any) -> None:
    """Refuse sizes that no model has."""
    for name, value in vars(config).items():
        modules = name.endswith(("layers", "convolutions"))
        most = MOST_MODULES if modules else MOST.get(name, LARGEST)
        for size in value if isinstance(value, tuple) else (value,):
            fits = not isinstance(size, int) or size <= most
            _require(fits, f"{section}.{name} is {value}, expected at most {most:,}.")


def _require_costs(config: SpectrogramConfig) -> None:
    """Refuse filters and overlaps that take gigabytes, and scales that give 0 or infinity."""
    _require(
        config.n_bands * config.frame_samples <= 2**26,
        f"spectrogram has {config.n_bands} bands and an FFT size of {config.frame_samples}, "
        f"expected a product of at most {2**26:,}.",
    )
    _require(
        config.frame_samples <= 64 * config.hop_length,
        f"spectrogram.hop_length is {config.hop_length}, expected at least a 64th of the FFT size "
        f"({config.frame_samples}).",
    )
    _require(
        1e-6 <= config.db_scale <= 1e3,
        f"spectrogram.db_scale is {config.db_scale}, expected from 0.000001 to 1,000.",
    )
    _require(
        -1e3 <= config.min_db <= 0,
        f"spectrogram.min_db is {config.min_db}, expected from -1,000 to 0.",
    )


# --- JSON in and out ---

ADDED: dict[str, dict[str, Any]] = {
    "augment": {"gain_db": [0.0, 0.0], "equaliser_db": 0.0, "low_pass_hz": None, "noise_db": None},
    "embed": {"silence_db": None, "mix_lfe": True},
    "model": {"vector_norm": "none"},
    "pretrain": {"extractor_lr_scale": 1.0, "loss_share": 1.0},
}
"""Fields added since the first edition, with the values that mean what that edition did."""

LATER = {"optimiser": "adamw", "pitch_hop": 1, "note_labels": "", "n_similarity": 0}
"""Fields added later still, whose defaults mean what there was before."""

PATHS = {
    SpectrogramConfig: "spectrogram",
    ModelConfig: "model",
    AugmentConfig: "augment",
    PretrainConfig: "pretrain",
    FinetuneConfig: "finetune",
    EmbedConfig: "embed",
    TrainingConfig: "training",
}

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
        For a field that does not exist (the nearest name is suggested), a value of the wrong type
        or out of range.

    Examples
    --------
    >>> config = update(Config(), {"model": {"n_layers": 4}, "pretrain": {"mask_ratio": 0.6}})
    >>> config.model.n_layers, config.pretrain.mask_ratio
    (4, 0.6)
    >>> update(Config(), {"model": {"n_layer": 4}})
    Traceback (most recent call last):
        ...
    patchifier.config.RequestError: config has no field 'model.n_layer'. Did you mean 'n_layers'?
    """
    kinds = typing.get_type_hints(type(config))
    values = {}
    for name, value in changes.items():
        path = f"{where}.{name}" if where else name
        if name not in kinds:
            raise RequestError(f"config has no field {path!r}. {_hint(name, path, kinds)}")
        if dataclasses.is_dataclass(kinds[name]):
            _require(
                isinstance(value, dict),
                f"config field {path!r} is {value!r}, expected a group of fields in braces.",
            )
            values[name] = update(getattr(config, name), value, where=path)
        else:
            values[name] = _convert(value, kinds[name], path)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _hint(name: str, path: str, known: Collection[str]) -> str:
    new = new_name(path)
    if new is not None:
        return f"It is {new!r} now." if new else "It is a constant now."
    near = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Expected one of: {', '.join(known)}."


def _convert(value: Any, kind: Any, path: str) -> Any:
    """Check a JSON value against an annotation of this module.

    A list becomes a tuple, an int a float where one is meant.
    """
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
        _require(
            not isinstance(value, list | tuple) or len(value) <= MOST_ITEMS,
            f"config field {path!r} is a list of more than {MOST_ITEMS:,}.",
        )
        fits = isinstance(value, list | tuple) and (
            parts[-1] is Ellipsis or len(parts) == len(value)
        )
        _require(
            fits,
            f"config field {path!r} is {value!r}, expected a list of "
            f"{'numbers' if parts[-1] is Ellipsis else len(parts)}.",
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


def current_form(values: dict[str, Any], *, whole: bool = False) -> dict[str, Any]:
    """Return a config that any version wrote as one of today, with the same meaning.

    Old names and values are replaced (:data:`patchifier.config_names.RENAMED`). In a section that
    an earlier version wrote whole, fields added since get the values that mean what it did. `whole`
    is whether all sections are known to be so. Otherwise a section counts as whole if it has every
    field of the first edition, so that a recipe gets today's defaults.

    Raises
    ------
    RequestError
        If a field is given by its old and its new name, or is now a constant of another value.
    """
    try:
        completed = with_new_names(values)
    except ValueError as error:
        raise RequestError(str(error)) from None
    for section, added in ADDED.items():
        given = completed.get(section)
        names = {field.name for field in dataclasses.fields(getattr(Config(), section))}
        first = names - added.keys() - LATER.keys()
        if isinstance(given, dict) and (whole or first <= given.keys()):
            completed[section] = added | given
    return completed


def stored_form(config: Any) -> dict[str, Any]:
    """Return a config, or a section, with the first edition's names: :func:`digest` hashes it."""
    if not isinstance(config, Config):
        path = PATHS[type(config)]
        old = with_old_names(to_dict(config), path) | fixed_values(path)
        if isinstance(config, SpectrogramConfig):
            old["bands"] = config.n_bands
        return _without_later(old)
    old = {
        field.name: stored_form(getattr(config, field.name)) for field in dataclasses.fields(config)
    }
    whiten, kept = old["embed"].pop("whiten"), old["embed"].pop("n_components")
    old["model"] |= {
        "bands": config.spectrogram.n_bands,
        "pitch_bands": config.spectrogram.n_pitch_bands,
        "readout": config.raw_size if whiten else 0,
        "components": [config.pooled_size, kept] if kept else [0, 0],
    }
    return old


def _without_later(values: dict[str, Any]) -> dict[str, Any]:
    """Remove later fields where they mean what there was before (:data:`LATER`)."""
    return {
        name: _without_later(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if (name, value) not in LATER.items()
    }


def identity_form(config: Config) -> dict[str, dict[str, Any]]:
    """Return :func:`stored_form` without added fields that mean what the first edition did."""
    values = stored_form(config)
    for section, added in ADDED.items():
        for name, value in with_old_names(added, section).items():
            if values[section][name] == value:
                del values[section][name]
    return values


def recipes() -> dict[str, Path]:
    """Files of the recipes by their names: packed into the wheel, or beside the sources.

    Examples
    --------
    >>> sorted(recipes())[:3]
    ['align-linear', 'base-paper', 'channels-narrow']
    """
    packed = Path(__file__).parent / "recipes"
    return {
        path.stem: path
        for path in sorted(
            (packed if packed.exists() else Path(__file__).parents[2] / "recipes").glob("*.json")
        )
    }


def read_changes(path: str | Path) -> dict[str, Any]:
    """Read changes to a config from a JSON file, or from the recipe of that name, such as "demo".

    Raises
    ------
    RequestError
        If the file is missing or is not a JSON object.

    Examples
    --------
    >>> read_changes("no-stage-one")
    {'pretrain': {'stages': 'two', 'stage_two': {'epochs': 2000.0}}}
    """
    try:
        place = recipes().get(str(path), Path(path))
        if place.exists() and not (place.is_file() or place.is_dir()):
            raise OSError(errno.EINVAL, "not a regular file")
        changes = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"cannot read config file {path} ({error.strerror}), expected a file, or a recipe's "
            "name such as 'demo'."
        ) from error
    except (ValueError, RecursionError) as error:
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
    return current_form(changes)


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Name the file in a message about a value in it."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error


def digest(*parts: Any) -> str:
    """Short hash of configs and plain values; the same values give the same hash in any process."""
    values = [stored_form(part) if dataclasses.is_dataclass(part) else part for part in parts]
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
