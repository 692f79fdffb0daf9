"""Hugging Face: model folders on a hub, and the classes that transformers expects.

:func:`from_hub` downloads a model folder by name, as ``patchifier.load("hf://owner/name")`` does.
:class:`HubModel` reads and writes model folders. If transformers is installed, importing this
module registers the model type "patchifier" (:func:`register`), so that the Auto classes open model
folders. The classes for transformers are attributes of this module, such as
``hf.PatchifierModel``.

Shapes: B clips, S samples, N patches, D embed_dim, E embedding size.
"""

import functools
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchifier import audio, checkpoint, embed, spectrogram, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, current_form, to_dict, update
from patchifier.extras import need
from patchifier.hub import FILES, from_hub
from patchifier.integrations.waveforms import encode_waveforms
from patchifier.io import write_json
from patchifier.nn.fast import accelerate
from patchifier.nn.model import Patchifier

hub = need("huggingface_hub")
SECTIONS = tuple(to_dict(Config()))
CLASSES = ("PatchifierConfig", "PatchifierModel", "PatchifierFeatureExtractor", "PatchifierOutput")
MODULE = "modeling_patchifier"  # it lies in a saved folder, where trust_remote_code finds it
AUTO_MAP = {
    "AutoConfig": f"{MODULE}.PatchifierConfig",
    "AutoModel": f"{MODULE}.PatchifierModel",
}
__all__ = ["HubModel", "from_hub", "register", *CLASSES]


class HubModel(  # type: ignore[call-arg, misc]
    hub.ModelHubMixin,  # type: ignore[name-defined]
    library_name="patchifier",
    tags=["music", "audio"],
    license="apache-2.0",
):
    """A model with the methods of the hub: save_pretrained, push_to_hub and from_pretrained.

    They write and read model folders. Other files of a folder are not changed.

    Parameters
    ----------
    embedder : Embedder
    facts : dict
        Metadata of the training, for the model card.

    Examples
    --------
    >>> model = HubModel.from_pretrained("patchifier-paper")
    >>> model.embed("music/one.ogg").shape
    (512,)
    >>> _ = model.save_pretrained("saved")  # a folder to upload
    >>> patchifier.load("saved").size
    512
    """

    def __init__(self, embedder: embed.Embedder, facts: Mapping[str, Any] | None = None) -> None:
        self.embedder, self.facts = embedder, dict(facts or {})

    def embed(
        self, x: embed.Music | Sequence[embed.Music], sample_rate: int | None = None
    ) -> np.ndarray:
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
        """Read a model of the package (default), a model folder, or a model of the hub.

        `how` is passed to :func:`from_hub`.
        """
        name = pretrained_model_name_or_path
        if name is None or name in weights.names() or Path(name).is_dir():
            folder = weights.find(name)
        else:
            folder = from_hub(f"{name}@{revision}" if revision else str(name), **how)
        loaded = checkpoint.load(folder)
        return cls(
            checkpoint.embedder_of(loaded, device=device),
            loaded.facts,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        saved = self.embedder
        with tempfile.TemporaryDirectory(dir=save_directory) as new:
            made = Path(new) / "model"
            checkpoint.save(made, checkpoint.checkpoint_of(saved, self.facts), auto_map=AUTO_MAP)
            facts = {
                "feature_extractor_type": "PatchifierFeatureExtractor",
                "sampling_rate": saved.config.spectrogram.sample_rate,
                "auto_map": {"AutoFeatureExtractor": f"{MODULE}.PatchifierFeatureExtractor"},
            }
            write_json(made / "preprocessor_config.json", facts)  # for AutoFeatureExtractor
            shutil.copyfile(Path(__file__).with_name(f"{MODULE}.py"), made / f"{MODULE}.py")
            # config.json last: a folder without it is refused
            for name in (f"{MODULE}.py", *reversed(FILES[1:]), "config.json"):
                os.replace(made / name, save_directory / name)


def register() -> None:
    """Register the model type "patchifier" with the Auto classes of transformers.

    Importing this module does so, if transformers is installed.

    Examples
    --------
    >>> import transformers
    >>> register()
    >>> transformers.AutoConfig.from_pretrained(weights.find("patchifier-paper")).hidden_size
    256
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
    """Make the classes for transformers at first use, because its import takes seconds."""
    if name in CLASSES:
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, Any]:  # noqa: C901 - classes that need transformers as a base
    """Return the classes for transformers by name."""
    transformers = need("transformers")

    class PatchifierConfig(transformers.PreTrainedConfig):  # type: ignore[misc, name-defined]
        """All fields of :class:`patchifier.config.Config` as nested dictionaries.

        ``hidden_size``, ``num_hidden_layers``, ``num_attention_heads`` and ``sampling_rate`` are
        derived from them. ``settings`` is the Config.

        Examples
        --------
        >>> from patchifier.integrations import hf
        >>> config = hf.PatchifierConfig(model={"n_layers": 4})
        >>> config.hidden_size, config.num_hidden_layers, config.sampling_rate
        (256, 4, 22050)
        """

        model_type = "patchifier"
        _auto_class = "AutoConfig"
        spectrogram: dict | None = None
        model: dict | None = None
        augment: dict | None = None
        pretrain: dict | None = None
        finetune: dict | None = None
        embed: dict | None = None

        def __post_init__(self, **others: Any) -> None:
            for section, values in to_dict(self.settings).items():
                setattr(self, section, values)
            model = self.settings.model
            derived = {
                "hidden_size": model.embed_dim,
                "num_hidden_layers": model.n_layers,
                "num_attention_heads": model.n_heads,
                "sampling_rate": self.settings.spectrogram.sample_rate,
            }
            for name, value in derived.items():
                setattr(self, name, value)
            known = (*derived, "checkpoint")
            super().__post_init__(
                **{name: value for name, value in others.items() if name not in known}
            )
            # in memory, whatever the type in the file
            self.dtype: torch.dtype = getattr(self, "dtype", None) or torch.float32

        @property
        def settings(self) -> Config:
            """The :class:`patchifier.config.Config`."""
            given = {name: getattr(self, name) for name in SECTIONS if getattr(self, name)}
            return update(Config(), current_form(given))

    @dataclass
    class PatchifierOutput(transformers.utils.ModelOutput):  # type: ignore[misc, name-defined]
        """Output of the model, one vector per patch.

        ``last_hidden_state`` (B, N, D); ``pooler_output`` (B, E), the embedding; ``hidden_states``,
        L + 1 times (B, N, D); ``attention_mask`` (B, N), 0 in padding; ``frame_rate_hz``, patches
        per second; ``timestamps`` (B, N), centre of each patch in seconds, 0 in padding. The last
        patch ends with the clip and may overlap the one before.

        Examples
        --------
        >>> import torch
        >>> from patchifier import weights
        >>> from patchifier.integrations import hf
        >>> model = hf.PatchifierModel.from_pretrained(weights.find("patchifier-paper"))
        >>> output = model(torch.zeros(1, 44_100))
        >>> output.timestamps.shape, round(output.frame_rate_hz, 3)
        (torch.Size([1, 3]), 1.346)
        """

        last_hidden_state: Tensor | None = None
        pooler_output: Tensor | None = None
        hidden_states: tuple[Tensor, ...] | None = None
        attention_mask: Tensor | None = None
        frame_rate_hz: float | None = None
        timestamps: Tensor | None = None

    class PatchifierModel(transformers.PreTrainedModel):  # type: ignore[misc, name-defined]
        """The model for transformers, from waveforms to sequences and embeddings.

        It can be trained.

        Examples
        --------
        >>> import torch
        >>> from patchifier import weights
        >>> from patchifier.integrations import hf
        >>> model = hf.PatchifierModel.from_pretrained(weights.find("patchifier-paper"))
        >>> output = model(torch.zeros(2, 44_100))
        >>> output.last_hidden_state.shape, output.pooler_output.shape
        (torch.Size([2, 3, 256]), torch.Size([2, 512]))
        """

        config_class = PatchifierConfig
        _auto_class = "AutoModel"
        base_model_prefix = "patchifier"
        main_input_name = "input_values"
        # the head of a fine-tuned model, which patchifier.load reads
        _keys_to_ignore_on_load_unexpected = (r"^head\.",)
        # whatever the dtype: whitening and estimators of tonic and tempo
        _keep_in_fp32_modules_strict = ("readout", "estimators")

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = accelerate(Patchifier(config.settings))
            self.post_init()

        def _init_weights(self, module: Any) -> None:
            """Keep the weights that the model initialised itself."""

        def forward(
            self,
            input_values: Tensor,
            attention_mask: Tensor | None = None,
            output_hidden_states: bool | None = None,
            return_dict: bool | None = None,
        ) -> Any:
            """Encode waveforms (B, S) at ``config.sampling_rate``, float32 whatever the dtype.

            `attention_mask` (B, S) is 0 in padding, which must be at the end. ``pooler_output`` is
            in float32 too.
            """
            settings = self.config.settings
            waveforms = _unpadded(input_values, attention_mask)
            layers, embedding, valid = encode_waveforms(self.model, settings, waveforms)
            if output_hidden_states is None:
                output_hidden_states = self.config.output_hidden_states
            middles_s = _middles_s([len(waveform) for waveform in waveforms], settings)
            output = PatchifierOutput(
                last_hidden_state=layers[-1],
                pooler_output=embedding,
                hidden_states=tuple(layers) if output_hidden_states else None,
                attention_mask=valid.long(),
                frame_rate_hz=1 / (settings.model.patch_frames * settings.spectrogram.frame_s),
                timestamps=middles_s.to(input_values.device),
            )
            return output if return_dict is None or return_dict else output.to_tuple()

        def save_folder(self, folder: str | Path) -> None:
            """Write a model folder for :func:`patchifier.load`."""
            checkpoint.save(folder, Checkpoint(self.model, self.config.settings))

    base = transformers.SequenceFeatureExtractor

    class PatchifierFeatureExtractor(base):  # type: ignore[misc, valid-type]
        """Pads waveforms to one length and checks their sample rate.

        Examples
        --------
        >>> import numpy as np
        >>> from patchifier.integrations import hf
        >>> sounds = [np.zeros(22_050, np.float32), np.zeros(11_025, np.float32)]
        >>> batch = hf.PatchifierFeatureExtractor()(sounds, 22_050, return_tensors="pt")
        >>> batch["input_values"].shape, batch["attention_mask"].sum(1).tolist()
        (torch.Size([2, 22050]), [22050, 11025])
        """

        model_input_names = ("input_values", "attention_mask")
        _auto_class = "AutoFeatureExtractor"

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
            """Pad one waveform (S,) or a list: "input_values" and "attention_mask", (B, S) each."""
            if sampling_rate != self.sampling_rate:
                raise RequestError(
                    f"sampling_rate is {sampling_rate}, expected {self.sampling_rate} Hz: "
                    "resample, and give that rate as sampling_rate=."
                )
            several = isinstance(raw, list | tuple) and len(raw)
            several = several and not isinstance(raw[0], int | float)
            waveforms = [
                audio.as_waveform(one, sampling_rate, target_rate=self.sampling_rate)
                for one in (raw if several else [raw])
            ]
            return self.pad(
                {"input_values": waveforms},
                padding=padding,
                return_attention_mask=True,
                return_tensors=return_tensors,
                **how,
            )

    made = (PatchifierConfig, PatchifierModel, PatchifierFeatureExtractor, PatchifierOutput)
    for kind in made:
        # pickle finds them there, and transformers copies that file when it saves one
        kind.__qualname__, kind.__module__ = kind.__name__, f"{__package__}.{MODULE}"
    importlib.import_module(f"{__package__}.{MODULE}")
    return {kind.__name__: kind for kind in made}


def _unpadded(batch: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Rows of a batch without their padding."""
    if batch.ndim != 2 or 0 in batch.shape or not batch.is_floating_point():
        raise RequestError(
            f"input_values is {tuple(batch.shape)} of {batch.dtype}, expected floats (B, S)."
        )
    if batch.dtype.itemsize < torch.float32.itemsize:  # vectors at a cosine of 0.98 to float32's
        raise RequestError(
            f"input_values is of {batch.dtype}, which loses quiet sound, expected float32: leave "
            "it as the feature extractor gives it, for a model of any dtype."
        )
    if mask is None:
        return list(batch)
    lengths = mask.bool().sum(1)
    leading = torch.arange(batch.shape[1], device=mask.device) < lengths[..., None]
    if not torch.equal(leading, mask.bool()) or not lengths.all():
        raise RequestError(
            f"attention_mask {tuple(mask.shape)} must be as large as input_values "
            f"{tuple(batch.shape)}, 1 from the first sample on, then 0."
        )
    return [row[:length] for row, length in zip(batch, lengths.tolist(), strict=True)]


def _middles_s(samples: list[int], config: Config) -> Tensor:
    """Centre of each patch of clips of these lengths, in seconds: (B, N), 0 in padding."""
    W, rows = config.model.patch_frames, []
    for count in samples:
        frames = 1 + count // config.spectrogram.hop_length
        starts = torch.tensor(spectrogram.patch_starts(frames, length=W, tail="anchor"))
        rows.append((starts + (min(W, frames) - 1) / 2) * config.spectrogram.frame_s)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


if importlib.util.find_spec("transformers"):
    register()
