"""Down modules for pitch bands, a representation beyond the paper.

Shapes: P patches, M pitch bands, T frames in a patch, C channels.
"""

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
        self.semitones = nn.Conv2d(n_groups, C, (5, 1), stride=(3, 1), padding=(2, 0), bias=False)
        self.octaves = nn.Conv2d(C, C, (3, 1), dilation=(12, 1), padding=(12, 0), bias=False)
        self.tones = nn.Conv2d(C, C, (3, 1), stride=(2, 1), padding=(1, 0), bias=False)
        self.size = C * config.spectrogram.n_pitch_bands // 6  # of the output
        self.norms = nn.ModuleList(nn.BatchNorm2d(C) for _ in range(3))

    @property
    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """The convolutions, in their order."""
        return self.semitones, self.octaves, self.tones

    def groups(self, bands: Tensor) -> Tensor:
        """Mean over each group of frames: (P, M, T) -> (P, M, T / 4)."""
        return bands.unflatten(-1, (-1, FRAMES)).mean(-1)

    def forward(self, bands: Tensor) -> Tensor:
        """Turn pitch bands (P, M, T) into features (P, C * M / 6)."""
        maps = self.groups(bands).transpose(1, 2).unsqueeze(-1)  # (P, T / 4, M, 1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            maps = norm(convolution(maps)).relu()  # (P, C, M / 3, 1), at last (P, C, M / 6, 1)
        return maps.flatten(1)
