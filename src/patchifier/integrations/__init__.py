"""Interfaces that other programs expect of a model.

=============  ========================================================================
``hear``       HEAR's common API: scenes and time stamps
``marble``     an encoder for MARBLE's configuration files, by import path
``hf``         Hugging Face: a hub's folders, AutoModel, AutoFeatureExtractor
``onnx``       waveform in, embedding out, without torch
``sklearn``    a transformer for pipelines
``beets``      a beets library; ``beetsplug.patchifier`` is the plugin
``ray``        a library job on many machines, with Ray
``navidrome``  the plugin of Navidrome, in WebAssembly
=============  ========================================================================

Each is imported by its name, so that none needs the packages of another one.
"""

from patchifier.lazy import attach

__getattr__, __dir__ = attach(__name__)
