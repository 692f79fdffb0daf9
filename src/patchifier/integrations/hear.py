"""HEAR's common API (Turian et al. 2022): this module is what its programs import.

``load_model`` gives a torch module; ``get_scene_embeddings`` and ``get_timestamp_embeddings`` embed
a batch with it. Scenes are the embeddings of :meth:`patchifier.embed.Embedder.embed`; time stamps
are overlapping patches through the same model, each in the context of the patches that touch it.

Shapes: B sounds, S samples, K time stamps, E or D numbers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchifier import checkpoint, embed, spectrogram
from patchifier.audio import largest, scale_fault
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, SpectrogramConfig, update
from patchifier.evaluate.frames import frame_vectors
from patchifier.nn.model import Patchifier

SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)  # Hz, those that HEAR's tasks come in
FINEST_S = 0.05  # HEAR asks for time stamps that are no further apart


class Model(nn.Module):
    """A model as HEAR's programs hold it.

    Parameters
    ----------
    model : Patchifier
        The network; it moves with this module from device to device.
    config : Config
        What it was made with.

    Attributes
    ----------
    sample_rate : int
        In Hz.
    scene_embedding_size, timestamp_embedding_size : int
        Numbers in an embedding.
    hop_frames : int
        Frames between time stamps: the longest hop of at most 50 ms that divides a patch.
    """

    def __init__(self, model: Patchifier, config: Config) -> None:
        super().__init__()
        if config.spectrogram.sample_rate not in SAMPLE_RATES:
            raise RequestError(
                f"the model reads {config.spectrogram.sample_rate} Hz, expected one of HEAR's "
                f"rates: {', '.join(map(str, SAMPLE_RATES))}."
            )
        self.model, self.config = model, config
        self.sample_rate = int(config.spectrogram.sample_rate)
        self.scene_embedding_size = int(self.embedder().size)
        self.timestamp_embedding_size = int(config.model.embed_dim * len(config.embed.layers))
        self.hop_frames = _hop_frames(config)

    def embedder(self) -> embed.Embedder:
        """The network where it is now, in evaluation mode whatever the caller set."""
        device = str(next(self.model.parameters()).device)
        return checkpoint.embedder_of(Checkpoint(self.model, self.config), device=device)

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings (B, E)."""
        return get_scene_embeddings(audio, self)


def _hop_frames(config: Config) -> int:
    """Divisors of a patch alone: only then do patches of one sequence touch."""
    W, frame_s = config.model.patch_frames, config.spectrogram.frame_s
    return max(
        [hop for hop in range(1, W + 1) if W % hop == 0 and hop * frame_s <= FINEST_S], default=1
    )


def load_model(model_file_path: str = "", **options: Any) -> Model:
    """Load a model.

    Parameters
    ----------
    model_file_path : str
        What :func:`patchifier.load` takes; the bundled model by default.
    **options
        Fields of ``config.embed`` to change, such as ``pooling="mean"`` or ``layers=[0, -1]``.

    Returns
    -------
    Model

    Raises
    ------
    RequestError
        If there is no such model, no such option, or its sample rate is not one of HEAR's.

    Examples
    --------
    >>> model = load_model("patchifier-paper", pooling="mean")
    >>> model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size
    (22050, 256, 256)
    """
    loaded = checkpoint.load(model_file_path or None)
    return Model(loaded.model, update(loaded.config, {"embed": options}))


def get_scene_embeddings(audio: Tensor, model: Model) -> Tensor:
    """Embed each sound as a whole.

    Parameters
    ----------
    audio : Tensor, shape (B, S), float
        In [-1, 1], at ``model.sample_rate``.
    model : Model
        From :func:`load_model`.

    Returns
    -------
    Tensor, shape (B, E), float32
        On the device of `audio`. No row depends on another.

    Examples
    --------
    >>> model = load_model("patchifier-paper")
    >>> get_scene_embeddings(torch.zeros(2, 22_050), model).shape
    torch.Size([2, 512])
    """
    rows = _rows(audio)
    return torch.from_numpy(model.embedder().embed(list(rows), model.sample_rate)).to(audio.device)


def get_timestamp_embeddings(audio: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Embed moments of each sound, at most 50 ms apart.

    Parameters
    ----------
    audio : Tensor, shape (B, S), float
        In [-1, 1], at ``model.sample_rate``; from one sample on.
    model : Model
        From :func:`load_model`.

    Returns
    -------
    embeddings : Tensor, shape (B, K, D), float32
        On the device of `audio`. No row depends on another.
    timestamps : Tensor, shape (B, K), float64
        Milliseconds: the middle of the patch that each embedding describes, k hops for k = 0, 1,
        ... up to the end of the sound.

    Examples
    --------
    >>> model = load_model("patchifier-paper")
    >>> embeddings, timestamps = get_timestamp_embeddings(torch.zeros(1, 22_050), model)
    >>> embeddings.shape, timestamps[0, :3].round().tolist()
    (torch.Size([1, 22, 256]), [0.0, 46.0, 93.0])
    """
    rows, embedder = _rows(audio), model.embedder()
    config, hop_frames = model.config.spectrogram, model.hop_frames
    vectors = [
        frame_vectors(
            embedder,
            spectrogram.log_mel(_centred(row, config, hop_frames), config),
            hop_frames=hop_frames,
        )[0][1:]
        for row in rows
    ]
    # Whole numbers multiplied before they are divided, so that nothing adds up over a long sound.
    milliseconds = (
        np.arange(len(vectors[0])) * (hop_frames * config.hop_length * 1000) / config.sample_rate
    )
    timestamps = torch.from_numpy(milliseconds).expand(len(rows), -1).contiguous()
    return torch.from_numpy(np.stack(vectors)).to(audio.device), timestamps


def _centred(waveform: np.ndarray, config: SpectrogramConfig, hop_frames: int) -> np.ndarray:
    """Pad a waveform so that frame k + 1 of :func:`frame_vectors` is centred on sample k * hop.

    A moment's patch has half its frames before the moment's own and one less after it, so that its
    middle lies half a frame early. The silence is half a frame short of a hop: what is early by
    half a frame in the padded sound is on time, one hop on, in the sound.
    """
    half = config.hop_length // 2
    return np.pad(waveform, (hop_frames * config.hop_length - half, half))


def _rows(audio: Tensor) -> np.ndarray:
    if (
        not isinstance(audio, Tensor)
        or audio.ndim != 2
        or 0 in audio.shape
        or not audio.is_floating_point()
    ):
        seen = (
            f"{tuple(audio.shape)} of {audio.dtype}"
            if isinstance(audio, Tensor)
            else type(audio).__name__
        )
        raise RequestError(
            f"audio is {seen}, expected a tensor of floats (sounds, samples) with one of each at "
            "least."
        )
    if not audio.isfinite().all():
        raise RequestError("audio holds NaN or infinity, expected samples in [-1, 1].")
    rows = audio.detach().float().cpu().numpy()
    if fault := scale_fault(largest(rows)):
        raise RequestError(f"audio's samples {fault}")
    return rows
