"""Frame-wise tasks: beats, chords and boundaries from vectors of frames.

=============  =============================================================================
``vectors``    a vector every 46 ms from overlapping patches; log-mel context as the control
``targets``    rows [start_s, end_s, label] -> numbers for each frame
``decode``     probabilities of frames -> rows
``metrics``    scores of rows against reference rows, by mir_eval
``fit``        one linear layer: training, early stopping, test
=============  =============================================================================
"""

from patchifier.evaluate.frames.decode import decode
from patchifier.evaluate.frames.fit import FrameResult, other_scores, over_folds, probe_frames
from patchifier.evaluate.frames.metrics import scores, weighted_mean
from patchifier.evaluate.frames.targets import encode
from patchifier.evaluate.frames.vectors import (
    Features,
    frame_vectors,
    mel_features,
    mel_frames,
    model_features,
)

__all__ = [
    "Features",
    "FrameResult",
    "decode",
    "encode",
    "frame_vectors",
    "mel_features",
    "mel_frames",
    "model_features",
    "other_scores",
    "over_folds",
    "probe_frames",
    "scores",
    "weighted_mean",
]
