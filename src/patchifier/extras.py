"""Optional packages: which extra installs what, and how a missing one is reported."""

import importlib
from typing import Any

from patchifier.config import RequestError

EXTRAS = {  # package -> extra of this package that installs it
    "torch": "train", "lightning_fabric": "train", "sklearn": "eval", "librosa": "eval",
    "matplotlib": "eval", "jinja2": "eval", "mir_eval": "eval", "av": "formats",
    "transformers": "hf", "huggingface_hub": "hf", "lancedb": "search", "ray": "cluster",
    "fsspec": "cluster", "onnx": "train", "onnxscript": "onnx",
    "starlette": "app", "uvicorn": "app", "umap": "app",
}  # fmt: skip


def how_to_install(package: str, extra: str = "") -> str:
    """Give the pip command that installs an optional package; by an extra, if one is named."""
    extra = extra or EXTRAS[package]
    return f"pip install 'patchifier[{extra}]', in a clone '.[{extra}]'"


def need(module: str, extra: str = "") -> Any:
    """Import a module of an optional package, such as "sklearn.base".

    Its package is a key of :data:`EXTRAS`. If it is not installed, a RequestError has the pip
    command, with `extra` where another one than that of :data:`EXTRAS` is smaller.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = how_to_install(package, extra)
        raise RequestError(f"this needs {package} ({error}): {how}.") from error
