"""Graphs of a model folder: they give what torch gives, and one of a stranger is refused before it runs."""

import logging
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

import patchifier
from patchifier import checkpoint, graph, weights
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.embed import Embedder
from patchifier.model_folder import GRAPH, RECONSTRUCT, OnnxNetwork
from patchifier.nn.encode import TorchNetwork
from patchifier.nn.model import Head, Patchifier
from patchifier.tasks import Task
from tests.builders import TINY

RATE = 22_050
TASK = Task("one-of", ("blues", "jazz", "rock"))
SUMMARIES = {
    "spectrogram": {"n_pitch_bands": 216},
    "embed": {"summaries": ["harmony", "rhythm", "texture"]},
}
POSTNORM = {"embed": {"layers": [-1], "pooling": "cls"}}
PRENORM = {"model": TINY | {"norm_first": True}}
SIMILAR = {"embed": {"layers": [-1], "summaries": ["rhythm"], "whiten": True, "n_similarity": 6}}
MODELS = {"plain": {}, "summaries": SUMMARIES, "CLS": POSTNORM, "pre-norm": PRENORM}
MODELS |= {"similarity": SIMILAR}


def made(**changes) -> Checkpoint:
    """A small model with a head; positions, batch norms and outputs that show."""
    sections = {"model": TINY, "embed": {"layers": [0, 1, -1], "pooling": "mean+std"}}
    config = update(update(Config(), sections), changes)
    model = Patchifier(config, seed=1)
    torch.manual_seed(0)
    head = Head(config.model.embed_dim, len(TASK.names))
    torch.nn.init.normal_(head.linear.weight, std=3.0)
    with torch.no_grad():
        model.train().extractor(torch.rand(64, 1, config.spectrogram.n_bands, 32) - 0.9)
        if model.readout:
            model.readout.fit(torch.rand(64, config.raw_size))
    return Checkpoint(model.eval(), config, head, TASK)


@pytest.fixture(scope="module", params=[*MODELS, *weights.names()])
def both(request, tmp_path_factory) -> tuple[Embedder, Embedder]:
    """A model by ONNX Runtime and by torch."""
    folder = request.param
    if folder in MODELS:
        folder = tmp_path_factory.mktemp("model") / "model"
        checkpoint.save(folder, made(**MODELS[request.param]))
    found = patchifier.load(folder), checkpoint.load_embedder(folder)
    assert [type(each.network) for each in found] == [OnnxNetwork, TorchNetwork]
    return found


def sound(kind: str, seconds: float) -> np.ndarray:
    time_s = np.arange(max(1, round(seconds * RATE))) / RATE
    noise = np.random.default_rng(len(time_s)).uniform(-0.3, 0.3, len(time_s))
    tone = 0.5 * np.sin(2 * np.pi * 440 * time_s)
    glide = 0.4 * np.sin(2 * np.pi * (200 + 30 * time_s) * time_s) + 0.1 * noise
    every = {"noise": noise, "tone": tone, "glide": glide, "silence": 0 * tone}
    return every[kind].astype(np.float32)


SOUNDS = {
    "one sample": ("glide", 0),
    "less than a patch": ("glide", 0.4),
    "one window": ("glide", 10),
    "many windows": ("glide", 45),
    "silence": ("silence", 4),
    "noise": ("noise", 21),
    "tone": ("tone", 21),
}


def require_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Largest difference at most 1e-5 of the norm of each vector."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == np.float32
    norms = np.linalg.norm(wanted, axis=-1, keepdims=True)
    assert (np.abs(found - wanted) / norms).max() < 1e-5


@pytest.mark.parametrize("name", SOUNDS)
def test_both_runtimes_give_the_same_vectors(name, both):
    by_onnx = both[0]
    log_mel = by_onnx.log_mel(sound(*SOUNDS[name]), RATE)
    require_near(*(each.embed(iter([log_mel])) for each in both))
    require_near(*(each.embed_patches(iter([log_mel])).vectors for each in both))
    if by_onnx.task is not None:
        require_near(*(each.predict(iter([log_mel])) for each in both))


def test_both_runtimes_have_the_same_identity_and_size(both):
    by_onnx, by_torch = both
    assert by_onnx.identity == by_torch.identity
    assert repr(by_onnx) == repr(by_torch)
    assert by_onnx.task == by_torch.task


def test_both_runtimes_draw_the_same_patches(both):
    by_onnx, by_torch = both
    log_mel, mask = by_onnx.log_mel(sound("glide", 7), RATE), np.arange(9) % 3 > 0
    patches, wanted = by_torch.reconstruct(log_mel, mask)
    if by_onnx.config.model.n_predictor_layers:
        with pytest.raises(RequestError, match=f"with a predictor.* no {RECONSTRUCT}"):
            by_onnx.reconstruct(log_mel, mask)
        return
    same, found = by_onnx.reconstruct(log_mel, mask)
    np.testing.assert_array_equal(same, patches)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_batch_gives_what_each_alone_does_and_the_same_bits_twice(both):
    by_onnx, _ = both
    waves = [sound(*SOUNDS[name]) for name in SOUNDS]
    together = by_onnx.embed(waves, RATE)
    np.testing.assert_array_equal(by_onnx.embed(waves, RATE), together)
    require_near(np.stack([by_onnx.embed(wave, RATE) for wave in waves]), together)


def test_threads_make_no_difference_and_a_copy_gives_the_same_bits(both, monkeypatch):
    by_onnx, wave = both[0], sound("glide", 30)
    wanted = by_onnx.embed(wave, RATE)
    for count in (1, 2, 4):
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        copy = pickle.loads(pickle.dumps(by_onnx))  # its session is made anew
        require_near(copy.embed(wave, RATE), wanted)
        if count == 1:
            np.testing.assert_array_equal(copy.embed(wave, RATE), wanted)
        session = copy.network._encode.session()
        assert session.get_session_options().intra_op_num_threads == count


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads_are_those_of_the_variable_else_the_cores(text, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert graph.thread_count() == (count or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("name", weights.names())
def test_stored_graphs_are_those_that_are_written_today(name):
    folder, held = weights.find(name), checkpoint.load(name)
    written = checkpoint.graphs_of(held.config, held.task)
    assert set(written) == {path.name for path in folder.glob("*.onnx")}
    for file, content in written.items():
        stored, again = onnx.load_from_string((folder / file).read_bytes()), onnx.ModelProto()
        again.ParseFromString(content)
        for one, other in zip(stored.graph.node, again.graph.node, strict=True):
            assert one == other
        for part in ("initializer", "input", "output"):
            assert list(getattr(stored.graph, part)) == list(getattr(again.graph, part))


# --- folders without graphs ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    checkpoint.save(folder, made())
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


def test_a_folder_without_graphs_is_loaded_by_torch_until_they_are_added(folder, whole):
    for path in folder.glob("*.onnx"):
        path.unlink()
    bare, wave = patchifier.load(folder), sound("glide", 3)
    assert isinstance(bare.network, TorchNetwork)
    assert checkpoint.add_graphs(folder) == [folder / GRAPH, folder / RECONSTRUCT]
    added = patchifier.load(folder)
    assert isinstance(added.network, OnnxNetwork)
    assert added.identity == bare.identity
    require_near(added.embed(wave, RATE), bare.embed(wave, RATE))
    for name in (GRAPH, RECONSTRUCT):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_model_of_whole_clips_has_no_graph_and_says_so(tmp_path):
    checkpoint.save(tmp_path / "model", made(embed={"whole_clip": True}))
    assert not (tmp_path / "model" / GRAPH).exists()
    with pytest.raises(RequestError, match=r"embed\.whole_clip is true"):
        checkpoint.add_graphs(tmp_path / "model")
    assert isinstance(patchifier.load(tmp_path / "model").network, TorchNetwork)


def test_without_onnx_a_model_is_saved_without_graphs_and_they_cannot_be_added(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with caplog.at_level(logging.WARNING):
        checkpoint.save(tmp_path / "model", made())
    assert "written without graph.onnx" in caplog.text
    assert not list((tmp_path / "model").glob("*.onnx"))
    with pytest.raises(RequestError, match="onnx"):
        checkpoint.add_graphs(tmp_path / "model")


def test_without_torch_a_folder_without_graphs_and_a_device_are_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RequestError, match="device 'cuda' needs torch: pip install"):
        patchifier.load(folder, device="cuda")
    (folder / GRAPH).unlink()
    with pytest.raises(RequestError, match=r"without graph\.onnx needs torch: pip install"):
        patchifier.load(folder)


# --- accelerators: ONNX Runtime for CUDA is a stand-in here ---


@pytest.fixture
def cuda(monkeypatch) -> list[tuple[str, dict]]:
    """ONNX Runtime says that it has CUDA, and computes on the CPU: the providers asked for."""
    import onnxruntime

    asked, real = [], onnxruntime.InferenceSession

    class Session:
        def __init__(self, content, options, *, providers, **other):
            asked.extend(providers)
            self.names = [name for name, _ in providers]
            self.run = real(content, options, providers=["CPUExecutionProvider"], **other).run

        def get_providers(self):
            return [*self.names, "CPUExecutionProvider"]

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


@pytest.mark.parametrize(("device", "number"), [("cuda", "0"), ("cuda:1", "1"), ("auto", "0")])
def test_onnx_runtime_for_cuda_serves_where_it_is_installed(folder, cuda, device, number, noise):
    expected = patchifier.load(folder)
    found = patchifier.load(folder, device=device)
    assert isinstance(found.network, OnnxNetwork)
    name, settings = cuda[-1]
    assert (name, settings["device_id"], settings["use_tf32"]) == (
        "CUDAExecutionProvider",
        number,
        "0",
    )
    again = pickle.loads(pickle.dumps(found))
    assert again.identity == expected.identity
    assert np.array_equal(again.embed(noise(3), RATE), expected.embed(noise(3), RATE))
    assert cuda[-2][0] == "CUDAExecutionProvider"  # then the CPU's, of `expected`
    assert cuda[-1][0] == "CPUExecutionProvider"


def test_a_device_that_onnx_runtime_cannot_use_is_refused_or_left_to_torch(
    folder, cuda, monkeypatch
):
    import onnxruntime

    without = ["CPUExecutionProvider"]  # as ONNX Runtime falls back if its libraries are missing
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: without)
    with pytest.raises(RequestError, match="device is 'cuda', expected one that torch has here"):
        patchifier.load(folder, device="cuda")
    assert str(patchifier.load(folder, device="auto").network.device) == "cpu"
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RequestError, match="'cuda', which ONNX Runtime cannot use"):
        patchifier.load(folder, device="cuda")
    assert patchifier.load(folder, device="auto").network.device == "cpu"


def test_the_best_device_of_a_processor_alone_is_the_cpu_by_onnx_runtime(folder):
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        found = patchifier.load(folder, device="auto").network
        assert isinstance(found, OnnxNetwork)
        assert found.device == "cpu"


# --- graphs of strangers ---


def refused(folder: Path, said: str) -> None:
    """Before ONNX Runtime sees the graph, in one line that names the file."""
    with pytest.raises(RequestError) as caught:
        patchifier.load(folder)
    message = str(caught.value)
    assert re.search(said, message), message
    assert str(folder / GRAPH) in message
    assert "\n" not in message


def constant(array: np.ndarray) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["x"], value=numpy_helper.from_array(array))


def elsewhere(model: onnx.ModelProto, *, location: str, **more: str) -> None:
    (entry,) = model.graph.initializer[0].external_data
    entry.value = location
    for key, value in more.items():
        model.graph.initializer[0].external_data.add(key=key, value=value)


def outside_constant(model: onnx.ModelProto) -> None:
    node = constant(np.zeros(4, np.float32))
    node.attribute[0].t.ClearField("raw_data")
    node.attribute[0].t.data_location = TensorProto.EXTERNAL
    node.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(node)


def inner_graph(kind: str) -> onnx.NodeProto:
    body = helper.make_graph([], "body", [], [])
    return helper.make_node(kind, ["x"], ["y"], body=body)


def add(node: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(node)


def change_weight(model: onnx.ModelProto, **fields) -> None:
    for name, value in fields.items():
        setattr(model.graph.initializer[0], name, value)


def change_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] += 1


def add_operations_of_others(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def add_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="Relu", domain="")


STRANGERS: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "another file": (lambda m: elsewhere(m, location="/etc/passwd"), "lie elsewhere"),
    "a file above": (lambda m: elsewhere(m, location="../model.safetensors"), "lie elsewhere"),
    "an offset": (lambda m: elsewhere(m, location="model.safetensors", offset="9"), "elsewhere"),
    "a constant outside": (outside_constant, "lie elsewhere"),
    "If": (add(inner_graph("If")), "operation 'If'"),
    "Loop": (add(inner_graph("Loop")), "operation 'Loop'"),
    "Scan": (add(inner_graph("Scan")), "operation 'Scan'"),
    "a graph in an attribute": (add(inner_graph("Relu")), "has a part"),
    "unknown operation": (add(helper.make_node("Evil", ["x"], ["y"])), "operation 'Evil'"),
    "operation of others": (
        add(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")),
        "has a part",
    ),
    "operations of others": (add_operations_of_others, "not ONNX's own"),
    "a function": (add_function, "has a part"),
    "no such weight": (lambda m: change_weight(m, name="model.none"), "safetensors has none"),
    "another type": (lambda m: change_weight(m, data_type=TensorProto.INT64), "needs .* int64"),
    "another shape": (change_shape, "of shape .* and model.safetensors has float32 of shape"),
    "a huge size": (add(constant(np.array([2**40]))), "the size 1,099,511,627,776"),
    "a huge negative size": (add(constant(np.array([-(2**40)]))), "the size -1,099"),
    "a huge constant": (add(constant(np.zeros(1_500_000, np.float32))), "has 6,000,"),
    "two graphs": (lambda m: m.graph.ClearField("node") or m.ClearField("graph"), "not an ONNX"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_graph_of_a_stranger_is_refused(name, folder):
    change, said = STRANGERS[name]
    model = onnx.load_from_string((folder / GRAPH).read_bytes())
    change(model)
    (folder / GRAPH).write_bytes(model.SerializeToString())
    refused(folder, said)


NO_GRAPH = "is not an ONNX graph|has a part"


def number_of(field: int, number: int) -> bytes:
    """A field of a message that holds a number."""
    digits = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([field << 3, *(digit | 128 for digit in digits[:-1]), digits[-1]])


def message_of(field: int, content: bytes) -> bytes:
    return bytes([field << 3 | 2, len(content)]) + content


NUMBERS = {
    "a graph": number_of(7, 2**40),
    "a node": message_of(7, number_of(1, 2**40)),
    "an operation": message_of(7, message_of(1, number_of(4, 2**40))),
    "a tensor": message_of(7, number_of(5, 2**40)),
    "a name": message_of(7, message_of(5, number_of(8, 2**40))),
    "values": message_of(7, message_of(5, number_of(2, 7) + number_of(9, 2**40))),
    "an attribute": message_of(7, message_of(1, message_of(4, b"Add") + number_of(5, 2**40))),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_a_number_in_place_of_a_part_is_refused_and_takes_no_memory(what, folder):
    (folder / GRAPH).write_bytes(NUMBERS[what])
    refused(folder, NO_GRAPH)


RELU = helper.make_node("Relu", ["x"], ["y"]).SerializeToString()
HUGE = numpy_helper.from_array(np.array([2**40]), "size").SerializeToString()
# A key of more than 32 bits, of which ONNX Runtime reads the lower ones: field 4, the operation.
ALIAS = b"\xa2\x80\x80\x80\x10" + b"\x02If"
HIDDEN = {
    "an operation behind a long key": message_of(7, message_of(1, RELU + ALIAS)),
    "operations of others by a number": message_of(7, message_of(1, RELU + number_of(7, 0))),
    "a type behind an empty text": message_of(7, message_of(5, HUGE + message_of(2, b""))),
    "a place behind a long key": message_of(7, message_of(5, HUGE + message_of(13, ALIAS))),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_a_part_that_onnx_runtime_would_read_otherwise_is_refused(what, folder):
    (folder / GRAPH).write_bytes(HIDDEN[what])
    refused(folder, "has a part")


@pytest.mark.parametrize("content", [b"", b"no graph " * 99, b"\xff" * 99, b"\x3a" + b"\x80" * 99])
def test_a_file_that_is_no_graph_is_refused(content, folder):
    (folder / GRAPH).write_bytes(content)
    refused(folder, NO_GRAPH)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(folder):
    with (folder / GRAPH).open("r+b") as file:
        file.truncate(10**12)
    refused(folder, "1,000,000,000,000 bytes, more than 8,000,000")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize(
    "make", [lambda path: os.mkfifo(path), lambda path: os.symlink("/dev/zero", path)]
)
def test_a_pipe_or_a_device_is_no_graph(make, folder):
    (folder / GRAPH).unlink()
    make(folder / GRAPH)
    assert isinstance(patchifier.load(folder).network, TorchNetwork)


def outcome(folder: Path, wave: np.ndarray) -> np.ndarray | str:
    """The vector of a damaged model, or its message."""
    try:
        return patchifier.load(folder).embed(wave, RATE)
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("part", range(12))
def test_a_graph_that_was_cut_off_is_refused(part, folder):
    content = (folder / GRAPH).read_bytes()
    (folder / GRAPH).write_bytes(content[: len(content) * part // 12 + part])
    message = outcome(folder, sound("glide", 0.4))
    assert isinstance(message, str)
    assert str(folder / GRAPH) in message
    assert "\n" not in message


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_ends_in_one_line_or_in_a_vector(seed, folder):
    content, chance = bytearray((folder / GRAPH).read_bytes()), np.random.default_rng(seed)
    content[chance.integers(len(content))] ^= 1 << int(chance.integers(8))
    (folder / GRAPH).write_bytes(content)
    found = outcome(folder, sound("glide", 0.4))
    if isinstance(found, str):
        assert str(folder / GRAPH) in found
        assert "\n" not in found
    else:
        assert found.shape == (96,)


def test_a_graph_of_another_config_is_refused_by_the_shapes_that_it_gives(folder, tmp_path):
    checkpoint.save(tmp_path / "other", made(embed={"pooling": "mean"}))
    shutil.copy(tmp_path / "other" / GRAPH, folder / GRAPH)
    message = outcome(folder, sound("glide", 0.4))
    assert (
        "it gives arrays of [(1, 48), (1, 2, 48), (1, 3)], expected floats of [(1, 96)" in message
    )


def test_a_graph_that_fails_while_it_runs_ends_in_one_line(folder):
    model = onnx.load_from_string((folder / GRAPH).read_bytes())
    shape = numpy_helper.from_array(np.array([7, 11]), "seven")
    node = helper.make_node("Constant", [], ["seven"], value=shape)
    made = helper.make_node("Reshape", ["index", "seven"], ["vectors_"])
    model.graph.node.extend([node, made])
    model.graph.output.append(helper.make_tensor_value_info("vectors_", TensorProto.INT64, None))
    (folder / GRAPH).write_bytes(model.SerializeToString())
    message = outcome(folder, sound("glide", 0.4))
    assert isinstance(message, str)
    assert "ONNX Runtime cannot use it" in message
    assert "\n" not in message


def test_a_tensor_of_no_part_of_a_model_is_refused(folder):
    path = folder / "model.safetensors"
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {"foo": np.zeros(1, np.float32)}
    save_file(tensors, path, metadata=metadata)
    for read in (patchifier.load, checkpoint.load):
        with pytest.raises(RequestError, match=r"the weights have \['foo'\] besides"):
            read(folder)


def test_a_mask_of_another_shape_is_refused(folder):
    model = patchifier.load(folder)
    log_mel = model.log_mel(np.zeros(5 * 22_050, np.float32), 22_050)
    with pytest.raises(RequestError, match=r"mask has shape \(2, 1\)"):
        model.reconstruct(log_mel, np.ones((2, 1), bool))
