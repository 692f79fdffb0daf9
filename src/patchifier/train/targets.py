"""What may be predicted in stage II: pixels, as in the paper; descriptors; and what a slow copy of the model knows.

Multi-task self-supervision (Pascual et al. 2019, the paper's reference [3]): small heads are asked for what engineers have always computed
of music, so that an encoder has to know it. Whatever augmentation does to the log-mel, it does to these too: a pitch that is shifted rolls
the chroma, time that is stretched slows the pulse.
"""

from patchifier.config import Config, RequestError
from patchifier.nn.descriptors import DESCRIPTORS, require_descriptor
from patchifier.nn.equivariant import ESTIMATORS, require_estimators

PIXELS = "pixels"  # the paper's target: masked patches themselves, by the decoder
TAUGHT = {
    "latent": "what a slow copy of the model, which sees masked patches alone, knows of them",
    "contrast": "which clip of the batch a slow copy hears in the masked patches",
}
ELSEWHERE = {
    "distil": "what another model, trained elsewhere, says of the clip: distillation, which is not self-supervised"
}


def require_targets(config: Config) -> None:
    """Refuse names that are no row, rows that need what the log-mel has not, and what is said of pixels alone.

    Raises
    ------
    RequestError
        Naming the target.
    """
    if config.pretrain.pairs and "contrast" not in config.pretrain.targets:
        raise RequestError(
            "pretrain.contrast_of 'group' says how the target 'contrast' is asked, which is not in pretrain.targets: add it, or leave this out."
        )
    if config.pretrain.targets == (PIXELS,) and not config.pretrain.teacher_features:
        return
    rows = (PIXELS, *DESCRIPTORS, *TAUGHT, *ESTIMATORS, *ELSEWHERE)
    if not config.pretrain.targets or len(set(config.pretrain.targets)) < len(
        config.pretrain.targets
    ):
        raise RequestError(
            f"pretrain.targets is {config.pretrain.targets}, expected some of {', '.join(rows)}, each once."
        )
    for name, only in (("loss_on", "masked"), ("extract", "visible")):
        if getattr(config.pretrain, name) != only:
            raise RequestError(
                f"pretrain.{name} is {getattr(config.pretrain, name)!r}, expected {only!r} with targets beside pixels."
            )
    for name in config.pretrain.targets:
        if name not in rows:
            raise RequestError(
                f"pretrain.targets holds {name!r}, expected some of {', '.join(rows)}."
            )
        if name in DESCRIPTORS:
            require_descriptor(name, config, what="the target")
    if ("distil" in config.pretrain.targets) != bool(config.pretrain.teacher_features):
        raise RequestError(
            "the target 'distil' and pretrain.teacher_features, a folder with a file for each clip, need each other."
        )
    require_estimators(
        [name for name in config.pretrain.targets if name in ESTIMATORS],
        config,
        field="pretrain.targets",
    )
