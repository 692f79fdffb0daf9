"""Hugging Face: model folders on a hub, and the classes that transformers expects.

:func:`from_hub` fetches a model folder by name, as ``patchifier.load("hf://owner/name")`` does. :class:`HubModel` reads and writes model
folders, the same that training writes and :func:`patchifier.load` reads. Where transformers is installed, importing this module tells it what a "patchifier" is
(:func:`register`), so that its Auto classes open model folders; its own classes can be had from here by name, such as
``hf.PatchifierModel``.

Shapes: B clips, S samples, N patches, D width, E embedding.
"""

import functools
import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchifier import audio, checkpoint, embed, spectrogram, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, current_form, to_dict, update
from patchifier.extras import need
from patchifier.hub import from_hub
from patchifier.integrations import encode_waveforms
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier

hub = need("huggingface_hub")
SECTIONS = tuple(to_dict(Config()))
CLASSES = ("PatchifierConfig", "PatchifierModel", "PatchifierFeatureExtractor", "PatchifierOutput")
__all__ = ["HubModel", "from_hub", "register", *CLASSES]


class HubModel(  # type: ignore[call-arg, misc]
    hub.ModelHubMixin,  # type: ignore[name-defined]
    library_name="patchifier",
    tags=["music", "audio", "self-supervised"],
    license="apache-2.0",
):
    """``save_pretrained(folder)`` and ``push_to_hub("owner/name")`` write a model folder, ``from_pretrained(folder or "owner/name")`` reads one.

    Other files of a folder are left alone.

    Parameters
    ----------
    embedder : Embedder
    facts : dict
        How the model was made, for its card.
    """

    def __init__(self, embedder: embed.Embedder, facts: Mapping[str, Any] | None = None) -> None:
        self.embedder, self.facts = embedder, dict(facts or {})

    def embed(self, x: Any, sample_rate: int | None = None) -> Any:
        """Embed music: :meth:`patchifier.embed.Embedder.embed`."""
        return self.embedder.embed(x, sample_rate)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str = "cpu",
        **how: Any,
    ) -> "HubModel":
        """Read a bundled model (the default), a model folder, or one of a hub; `how` as for :func:`from_hub`."""
        name = pretrained_model_name_or_path
        if name is None or name in weights.names() or Path(name).is_dir():
            folder = weights.find(name)
        else:
            folder = from_hub(f"{name}@{revision}" if revision else str(name), **how)
        loaded = checkpoint.load(folder)
        return cls(
            embed.Embedder(
                loaded.model, loaded.config, head=loaded.head, task=loaded.task, device=device
            ),
            loaded.facts,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        held = self.embedder
        with tempfile.TemporaryDirectory(dir=save_directory) as new:
            made = Path(new) / "model"
            checkpoint.save(
                made, Checkpoint(held.model, held.config, held.head, held.task, self.facts)
            )
            facts = {
                "feature_extractor_type": "PatchifierFeatureExtractor",
                "sampling_rate": held.config.spectrogram.sample_rate,
            }
            (made / "preprocessor_config.json").write_text(
                json.dumps(facts, indent=1) + "\n", encoding="utf-8"
            )  # what AutoFeatureExtractor reads
            for name in (
                "preprocessor_config.json",
                "model.safetensors",
                "README.md",
                "config.json",
            ):  # that last: without it the folder is refused
                os.replace(made / name, save_directory / name)


def register() -> None:
    """Let transformers' AutoConfig, AutoModel and AutoFeatureExtractor know this model, by the type "patchifier".

    Importing this module does it, where transformers is installed.
    """
    transformers, found = need("transformers"), _classes()
    transformers.AutoConfig.register("patchifier", found["PatchifierConfig"], exist_ok=True)
    transformers.AutoModel.register(
        found["PatchifierConfig"], found["PatchifierModel"], exist_ok=True
    )
    transformers.AutoFeatureExtractor.register(
        found["PatchifierConfig"], found["PatchifierFeatureExtractor"], exist_ok=True
    )


def __getattr__(name: str) -> Any:
    """Make transformers' classes when one is first asked for: transformers takes seconds to import."""
    if name in CLASSES:
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, Any]:  # noqa: C901 - classes that need transformers as a base
    """The classes that transformers expects, by name."""
    transformers = need("transformers")

    class PatchifierConfig(transformers.PreTrainedConfig):  # type: ignore[misc, name-defined]
        """Every field of :class:`patchifier.config.Config`, as nested dictionaries; ``settings`` is that config.

        ``hidden_size``, ``num_hidden_layers``, ``num_attention_heads`` and ``sampling_rate`` follow from them.
        """

        model_type = "patchifier"
        spectrogram: dict | None = None
        model: dict | None = None
        augment: dict | None = None
        pretrain: dict | None = None
        finetune: dict | None = None
        embed: dict | None = None

        def __post_init__(self, **others: Any) -> None:
            for section, values in to_dict(self.settings).items():
                setattr(self, section, values)
            self.hidden_size, self.num_hidden_layers = (
                self.settings.model.embed_dim,
                self.settings.model.n_layers,
            )
            self.num_attention_heads, self.sampling_rate = (
                self.settings.model.n_heads,
                self.settings.spectrogram.sample_rate,
            )
            derived = (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "sampling_rate",
                "checkpoint",
            )
            super().__post_init__(
                **{name: value for name, value in others.items() if name not in derived}
            )
            self.dtype: torch.dtype = (
                getattr(self, "dtype", None) or torch.float32
            )  # in memory, whatever the file has

        @property
        def settings(self) -> Config:
            """As the rest of the package has it."""
            return update(
                Config(),
                current_form(
                    {
                        section: getattr(self, section)
                        for section in SECTIONS
                        if getattr(self, section)
                    }
                ),
            )

    @dataclass
    class PatchifierOutput(transformers.utils.ModelOutput):  # type: ignore[misc, name-defined]
        """What the model gives, at the rate of patches.

        ``last_hidden_state`` (B, N, D); ``pooler_output`` (B, E), the embedding; ``hidden_states``, L + 1 times (B, N, D);
        ``attention_mask`` (B, N), 1 where a clip has a patch; ``frame_rate_hz``, patches in a second; ``timestamps`` (B, N), the middle
        of each patch in seconds, 0 in padding. The last patch ends with the clip: it may overlap the one before.
        """

        last_hidden_state: Tensor | None = None
        pooler_output: Tensor | None = None
        hidden_states: tuple[Tensor, ...] | None = None
        attention_mask: Tensor | None = None
        frame_rate_hz: float | None = None
        timestamps: Tensor | None = None

    class PatchifierModel(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        """The model for transformers: waveforms in, sequences and embeddings out; it can be trained."""

        config_class = PatchifierConfig
        base_model_prefix = "patchifier"
        main_input_name = "input_values"
        _keys_to_ignore_on_load_unexpected = (
            r"^head\.",
        )  # of a fine-tuned model: :func:`patchifier.load` reads it

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = accelerate(Patchifier(config.settings))
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """The model has drawn its own."""

        def forward(
            self,
            input_values: Tensor,
            attention_mask: Tensor | None = None,
            output_hidden_states: bool | None = None,
            return_dict: bool | None = None,
        ) -> Any:
            """Encode waveforms (B, S) at ``config.sampling_rate``; `attention_mask` (B, S) is 0 in padding, which comes last."""
            settings = self.config.settings
            waveforms = _unpadded(input_values, attention_mask)
            layers, embedding, present = encode_waveforms(self.model, settings, waveforms)
            hidden = (
                self.config.output_hidden_states
                if output_hidden_states is None
                else output_hidden_states
            )
            output = PatchifierOutput(
                last_hidden_state=layers[-1],
                pooler_output=embedding,
                hidden_states=tuple(layers) if hidden else None,
                attention_mask=present.long(),
                frame_rate_hz=1 / (settings.model.patch_frames * settings.spectrogram.frame_s),
                timestamps=_middles_s([len(waveform) for waveform in waveforms], settings).to(
                    input_values.device
                ),
            )
            return output if return_dict is None or return_dict else output.to_tuple()

        def save_folder(self, folder: str | Path) -> None:
            """Write a model folder for :func:`patchifier.load`."""
            checkpoint.save(folder, Checkpoint(self.model, self.config.settings))

    class PatchifierFeatureExtractor(transformers.SequenceFeatureExtractor):  # type: ignore[misc, name-defined]
        """Waveforms side by side; their rate is checked."""

        model_input_names = ("input_values", "attention_mask")

        def __init__(
            self,
            feature_size: int = 1,
            sampling_rate: int = audio.SAMPLE_RATE,
            padding_value: float = 0.0,
            **others: Any,
        ) -> None:
            super().__init__(
                feature_size=feature_size,
                sampling_rate=sampling_rate,
                padding_value=padding_value,
                **others,
            )

        def __call__(
            self,
            raw: Any,
            sampling_rate: int | None = None,
            padding: bool | str = True,
            return_tensors: str | None = None,
            **how: Any,
        ) -> Any:
            """Pad waveforms (S,), one or a list, of floats at `sampling_rate`: "input_values" (B, S) and "attention_mask" (B, S)."""
            if sampling_rate != self.sampling_rate:
                raise RequestError(
                    f"sampling_rate is {sampling_rate}, expected {self.sampling_rate} Hz: resample, and say so by sampling_rate=."
                )
            alone = (
                not isinstance(raw, list | tuple) or not len(raw) or isinstance(raw[0], int | float)
            )
            waveforms = [
                audio.as_waveform(one, sampling_rate, target_rate=self.sampling_rate)
                for one in ([raw] if alone else raw)
            ]
            return self.pad(
                {"input_values": waveforms},
                padding=padding,
                return_attention_mask=True,
                return_tensors=return_tensors,
                **how,
            )

    found = {
        kind.__name__: kind
        for kind in (
            PatchifierConfig,
            PatchifierModel,
            PatchifierFeatureExtractor,
            PatchifierOutput,
        )
    }
    for name, kind in found.items():
        kind.__qualname__ = name  # this module has them by that name: they can be pickled
    return found


def _unpadded(batch: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each row up to the end of its sound."""
    if batch.ndim != 2 or 0 in batch.shape or not batch.is_floating_point():
        raise RequestError(
            f"input_values is {tuple(batch.shape)} of {batch.dtype}, expected floats (B, S)."
        )
    if mask is None:
        return list(batch)
    lengths = mask.bool().sum(1)
    leading = (
        torch.arange(batch.shape[1], device=mask.device) < lengths[:, None]
        if mask.shape == batch.shape
        else None
    )
    if leading is None or not torch.equal(leading, mask.bool()) or not lengths.all():
        raise RequestError(
            f"attention_mask {tuple(mask.shape)} must be as large as input_values {tuple(batch.shape)}, 1 from the first sample on, then 0."
        )
    return [row[:length] for row, length in zip(batch, lengths.tolist(), strict=True)]


def _middles_s(samples: list[int], config: Config) -> Tensor:
    """Middle of each patch of clips of so many samples: (B, N), 0 in padding."""
    W, rows = config.model.patch_frames, []
    for count in samples:
        frames = 1 + count // config.spectrogram.hop_length
        starts = torch.tensor(spectrogram.patch_starts(frames, length=W, tail="anchor"))
        rows.append((starts + (min(W, frames) - 1) / 2) * config.spectrogram.frame_s)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


if importlib.util.find_spec("transformers"):
    register()
