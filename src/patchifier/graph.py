"""ONNX graphs of a model folder, run by ONNX Runtime with the weights of ``model.safetensors``.

A graph holds no weights, only their names. It may come from a stranger, so it is read before
ONNX Runtime sees it: operations of :data:`OPERATIONS` alone, no graph inside another one, no file
named but ``model.safetensors``, and no size above :data:`LARGEST`.
"""

import contextlib
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchifier.config import RequestError
from patchifier.devices import DeviceError, device_error, onnx_runtime, provider_of

WEIGHTS = "model.safetensors"
LARGEST_FILE = 8_000_000  # bytes; those of the package have 0.3 MB
LARGEST = 2**31 - 1  # of a number that may be a size; a bound that means "to the end" is above it
LARGEST_CONSTANT = 4_000_000  # bytes of a constant
TO_THE_END = 2**62
FLOAT, INT64 = 1, 7  # numbers of ONNX
DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("f4"), INT64: np.dtype("i8")}  # of weights
OPERATIONS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "Cos",
        "CumSum",
        "Div",
        "Einsum",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "Greater",
        "GreaterOrEqual",
        "Identity",
        "LayerNormalization",
        "Less",
        "LessOrEqual",
        "Log",
        "MatMul",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "Pad",
        "Pow",
        "Range",
        "Reciprocal",
        "ReduceMax",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Resize",
        "ScatterND",
        "Shape",
        "Sigmoid",
        "Sin",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Tanh",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)


class Session:
    """A graph with its weights.

    The session of ONNX Runtime is made at the first call, and anew in each process.

    Parameters
    ----------
    path : Path
        The graph.
    weights : mapping of str to ndarray
        Float32 or int64, by their names in the graph.
    device : str
        "cpu", or one that :func:`patchifier.devices.serves` knows.

    Raises
    ------
    RequestError
        If the graph is not one that this package writes, or names weights that are not there.
    """

    def __init__(
        self, path: Path, weights: Mapping[str, np.ndarray], *, device: str = "cpu"
    ) -> None:
        self.path, self.content, self.device = path, _read(path), device
        self.weights = {name: weights[name] for name in _checked_names(path, self.content, weights)}
        self._lock = threading.Lock()
        self._session: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which belongs to one process."""
        kept = ("path", "content", "weights", "device")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the session at the next call."""
        self.__dict__.update(state, _lock=threading.Lock(), _session=None)

    def __call__(self, **inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of the graph for its inputs by name.

        Raises
        ------
        RequestError
            If ONNX Runtime cannot make or run the graph.
        """
        with self._refusals():
            return self.session().run(None, inputs)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn what ONNX Runtime raises into a RequestError of one line."""
        try:
            yield
        except DeviceError:
            raise
        except Exception as error:
            if re.search("bad_alloc|allocat", str(error)):
                raise MemoryError from error
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            what = f"ONNX Runtime cannot use it ({first})"
            raise graph_error(self.path, what) from error

    def session(self) -> Any:
        """The session of this process.

        Raises
        ------
        DeviceError
            If ONNX Runtime cannot use the device.
        """
        with self._lock:
            if self._session is None:
                self._session = self._make()
        return self._session

    def _make(self) -> Any:
        onnxruntime = onnx_runtime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = thread_count()
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # memory would grow with every new shape
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(each) for each in self.weights.values()]
        options.add_external_initializers(list(self.weights), values)
        provider = provider_of(self.device)
        try:
            session = onnxruntime.InferenceSession(
                self.content, options, providers=[provider], enable_fallback=0
            )
        except Exception as error:
            if self.device == "cpu":
                raise
            raise device_error(self.device, str(error)) from error
        if provider[0] not in session.get_providers():  # it took the CPU, without an error
            raise device_error(self.device, "its libraries, or the device, are missing")
        return session


def thread_count() -> int:
    """Threads of a session: OMP_NUM_THREADS, else the cores that this process may use."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise graph_error(path, f"it has {size:,} bytes, more than {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise graph_error(path, f"it cannot be read ({error.strerror})") from error


def graph_error(path: Path, what: str) -> RequestError:
    """Error about a graph, with what to do."""
    return RequestError(
        f"{path}: {what}. Copy the model folder again, or write the graph again where torch is: "
        f"patchifier export {path.parent} --graphs."
    )


# --- what a graph holds ---


def _checked_names(path: Path, content: bytes, weights: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the weights of a graph, after all checks."""
    try:
        tensors = list(_tensors(path, content))
    except (IndexError, TypeError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise graph_error(path, "it is not an ONNX graph") from error
    names = []
    for tensor in tensors:
        if not tensor.external:
            continue
        known = weights.get(tensor.name)
        if known is None or (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
            have = "none" if known is None else f"{known.dtype} of shape {known.shape}"
            need = f"{tensor.dtype} of shape {tensor.shape}"
            raise graph_error(path, f"it needs {tensor.name}, {need}, and {WEIGHTS} has {have}")
        names.append(tensor.name)
    return names


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype | None
    external: bool


def _tensors(path: Path, content: bytes) -> Iterator[_Tensor]:
    """Tensors of the graph itself; nodes and their attributes are checked on the way."""
    model = _message(path, content, MODEL)
    for opset in model.get(8, []):
        if _last(_message(path, opset, OPSET), 1, b"") not in (b"", b"ai.onnx"):
            raise graph_error(path, "it uses operations that are not ONNX's own")
    if len(model.get(7, [])) != 1:
        raise graph_error(path, "it is not an ONNX graph")
    graph = _message(path, model[7][0], GRAPH)
    for node in graph.get(1, []):
        _check_node(path, _message(path, node, NODE))
    for tensor in graph.get(5, []):
        yield _tensor(path, tensor)


def _check_node(path: Path, node: Mapping[int, Sequence[Any]]) -> None:
    kind = _last(node, 4, b"").decode()
    if kind not in OPERATIONS:
        raise graph_error(path, f"it has the operation {kind!r}, which no graph of a model needs")
    for content in node.get(5, []):
        attribute = _message(path, content, ATTRIBUTE)
        for number in (*attribute.get(3, []), *_packed(attribute.get(8, []))):
            _check_size(path, number)
        for tensor in attribute.get(5, []):
            if _tensor(path, tensor).external:
                raise graph_error(path, "a constant of it lies in another file")


def _tensor(path: Path, content: bytes) -> _Tensor:
    tensor = _message(path, content, TENSOR)
    shape = tuple(_packed(tensor.get(1, [])))
    for number in shape:
        _check_size(path, number)
    name = _last(tensor, 8, b"").decode()
    external = bool(_last(tensor, 14, 0)) or 13 in tensor
    if external:
        places = [_message(path, each, PLACE) for each in tensor.get(13, [])]
        if places != [{1: [b"location"], 2: [WEIGHTS.encode()]}]:
            raise graph_error(path, f"the values of {name} lie elsewhere than in {WEIGHTS}")
    elif len(content) > LARGEST_CONSTANT:
        raise graph_error(path, f"the constant {name} has {len(content):,} bytes")
    kind = _last(tensor, 2, 0)
    if kind == INT64:
        raw = _last(tensor, 9, b"")
        stored = np.frombuffer(raw[: len(raw) // 8 * 8], "<i8").tolist()
        for number in (*stored, *_packed(tensor.get(7, []))):
            _check_size(path, number)
    return _Tensor(name, shape, DTYPES.get(kind), external)


def _check_size(path: Path, number: int) -> None:
    if LARGEST < abs(number) < TO_THE_END:
        raise graph_error(path, f"it holds the size {number:,}")


# --- protocol buffers ---

NUMBER, BYTES, PACKED, FLOATS = {0}, {2}, {0, 2}, {1, 2, 5}  # how a field may be written
# Fields that a graph of this package has, by number, and how they are written (onnx.proto).
MODEL = {
    1: NUMBER,
    2: BYTES,
    3: BYTES,
    4: BYTES,
    5: NUMBER,
    6: BYTES,
    7: BYTES,
    8: BYTES,
    14: BYTES,
}
OPSET = {1: BYTES, 2: NUMBER}
GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), BYTES)
NODE = dict.fromkeys((1, 2, 3, 4, 5), BYTES)
ATTRIBUTE = {1: BYTES, 2: FLOATS, 3: NUMBER, 4: BYTES, 5: BYTES, 7: FLOATS, 8: PACKED, 20: NUMBER}
TENSOR = {1: PACKED, 2: NUMBER, 4: FLOATS, 5: PACKED, 7: PACKED, 8: BYTES, 9: BYTES, 10: FLOATS}
TENSOR |= {13: BYTES, 14: NUMBER}
PLACE = {1: BYTES, 2: BYTES}


def _message(
    path: Path, content: bytes, fields: Mapping[int, Collection[int]]
) -> dict[int, list[Any]]:
    """Fields of a message by number: integers, or bytes of strings and of inner messages.

    Fields that are not listed, and those that are written in another way, are refused: ONNX Runtime
    would read them otherwise than this module.
    """
    view, place = memoryview(content), 0
    found: dict[int, list[Any]] = {}
    while place < len(view):
        key, place = _integer(view, place)
        kind, field = key & 7, key >> 3
        if kind not in fields.get(field, ()):
            raise graph_error(path, f"it has a part that no graph of a model needs ({field})")
        value: Any
        if kind == 0:
            value, place = _integer(view, place)
        else:
            size, place = _integer(view, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            if not 0 <= size <= len(view) - place:
                raise ValueError("a field reaches beyond the end of its message")
            value, place = view[place : place + size].tobytes(), place + size
        found.setdefault(field, []).append(value)
    return found


def _integer(view: memoryview, place: int) -> tuple[int, int]:
    """A signed 64-bit integer of variable length, and the place behind it."""
    number = shift = 0
    while True:
        byte = view[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            break
        if shift > 63:
            raise ValueError("an integer is too long")
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number, place


def _last(message: Mapping[int, Sequence[Any]], field: int, missing: Any) -> Any:
    """Value of a field, of which the last one counts."""
    return message.get(field, [missing])[-1]


def _packed(values: Sequence[Any]) -> Iterator[int]:
    """Integers of a repeated field, packed or not."""
    for value in values:
        if isinstance(value, int):
            yield value
            continue
        place, view = 0, memoryview(value)
        while place < len(view):
            number, place = _integer(view, place)
            yield number
