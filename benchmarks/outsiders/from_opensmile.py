"""openSMILE functionals, made for voice: eGeMAPSv02 (88 numbers) or ComParE_2016 (6,373).

    python benchmarks/outsiders/from_opensmile.py CACHE --out features/egemaps

Needs opensmile==2.6.0, whose library is free for research and evaluation only.
"""

import sys

import features
import numpy as np
import opensmile

from patchifier.evaluate.encoders import Encoder, each_waveform

SAMPLE_RATE = 16_000


def encoder(feature_set: str = "eGeMAPSv02") -> Encoder:
    """Functionals of a whole clip; the few of voice that are NaN where nothing is voiced become 0."""
    smile = opensmile.Smile(
        getattr(opensmile.FeatureSet, feature_set),
        opensmile.FeatureLevel.Functionals,
        num_workers=1,
    )

    def vector(waveform: np.ndarray) -> np.ndarray:
        return np.nan_to_num(
            smile.process_signal(waveform, SAMPLE_RATE).to_numpy(dtype=np.float32)[0]
        )

    name = f"opensmile-{feature_set}"
    return Encoder(name, each_waveform(name, SAMPLE_RATE, vector))


if __name__ == "__main__":
    arguments = features.parser(__doc__)
    arguments.add_argument("--set", choices=["eGeMAPSv02", "ComParE_2016"], default="eGeMAPSv02")
    asked = arguments.parse_args()
    sys.exit(features.write(encoder(asked.set), asked.cache, asked.out))
