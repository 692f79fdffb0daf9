"""Down modules for pitch bands, a representation beyond the paper.

Shapes: P patches, M pitch bands, T frames in a patch, C channels.
"""

import functools

import torch
from torch import Tensor, nn

from patchifier.config import Config

CHANNELS = 64  # of each convolution
FRAMES = 4  # that the long FFT of pitch bands does not resolve


class PitchModules(nn.Module):
    """Convolutions along the pitch axis; groups of four frames are the input channels.

    The first reduces thirds of a semitone to semitones. The second has a dilation of one octave.
    The third reduces semitones to whole tones.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        C, n_groups = CHANNELS, config.model.patch_frames // FRAMES
        self.n_mels = config.spectrogram.n_mels
        self.semitones = nn.Conv2d(n_groups, C, (5, 1), stride=(3, 1), padding=(2, 0), bias=False)
        self.octaves = nn.Conv2d(C, C, (3, 1), dilation=(12, 1), padding=(12, 0), bias=False)
        self.tones = nn.Conv2d(C, C, (3, 1), stride=(2, 1), padding=(1, 0), bias=False)
        self.size = C * config.spectrogram.n_pitch_bands // 6  # of the output
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(3))

    @property
    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """The convolutions, in their order."""
        return self.semitones, self.octaves, self.tones

    def forward(self, rows: Tensor) -> Tensor:
        """Turn patches, mel bands first (P, n_mels + M, T), into features (P, C * M / 6)."""
        groups = group_frames(rows, self.n_mels)  # (P, M, T / 4)
        maps = groups.transpose(1, 2).unsqueeze(-1)  # (P, T / 4, M, 1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = norm(convolution(maps)).relu()  # (P, C, M / 3, 1), at last (P, C, M / 6, 1)
        return maps.flatten(1)


def group_frames(rows: Tensor, first: int) -> Tensor:
    """Mean over each group of frames of the rows from `first` on: (..., M, T) -> (..., M', T / 4).

    In a graph it is a product with a matrix, since ONNX Runtime is slow at means of few numbers.
    """
    if not torch.onnx.is_in_onnx_export() or torch.compiler.is_compiling():
        return rows[..., first:, :].unflatten(-1, (-1, FRAMES)).mean(-1)
    return (rows @ grouping_matrix(int(rows.shape[-1])))[..., first:, :]


@functools.cache
def grouping_matrix(T: int) -> Tensor:
    """Matrix (T, T / 4) of means of four frames; the same tensor is one constant of a graph."""
    return torch.eye(T // FRAMES).repeat_interleave(FRAMES, dim=0) / FRAMES
