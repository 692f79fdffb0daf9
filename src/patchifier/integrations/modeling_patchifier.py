"""Opens the folder that it lies in: ``AutoModel.from_pretrained(..., trust_remote_code=True)``.

Saving a model for transformers copies this file beside its weights. It needs the package:
pip install 'patchifier[hf]'.
"""

from typing import Any

from patchifier.integrations import hf


def __getattr__(name: str) -> Any:
    return getattr(hf, name)
