"""What commits a77dfc4 and 36a501d wrote is read by today's code, and means what it meant (``fixtures/*/make.py``)."""

import csv
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from patchifier import checkpoint, embed
from patchifier.cache import Cache
from patchifier.config import Config, read_changes, update
from patchifier.embed import Embedder
from patchifier.library import build, search
from patchifier.train.pretrain import Batches, pretrain, split

HOME = Path(__file__).parent / "fixtures" / "first_edition"
ONE_SCALE = Path(__file__).parent / "fixtures" / "one_scale"
MUSIC = "/tmp/patchifier-first-edition/music"  # where it lay


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What that commit's code gave."""
    return dict(np.load(HOME / "expected.npz"))


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return module_of(HOME / "make.py")


@pytest.fixture(scope="module")
def log_mels() -> list[np.ndarray]:
    data = Cache(HOME / "cache")
    every = [np.array(data.log_mel(index), np.float32) for index in range(len(data.clips))]
    return [log_mel.T for log_mel in every]


@pytest.fixture(scope="module")
def model() -> Embedder:
    return embed.load(HOME / "model")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """The interrupted run, gone on with to its end."""
    out = tmp_path_factory.mktemp("first") / "run"
    shutil.copytree(HOME / "run", out)
    config = update(Config(), read_changes(out / "config.json"))
    pretrain(HOME / "cache", out, config=config, resume=True, device="cpu")
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_fixtures_are_small_and_name_no_place_but_their_own():
    files = [path for path in HOME.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    places = (b"/root/", b"/home/", b"/Users/")
    assert not [path for path in files if any(place in path.read_bytes() for place in places)]


def test_a_cache_opens_whole(maker):
    data = Cache(HOME / "cache")
    assert data.verify() == []
    assert (data.name, data.task.kind, data.task.names) == ("sounds", "one-of", ("noise", "tone"))
    splits = [maker.SPLITS[number // 2] for number in range(maker.CLIPS)]
    assert [clip.split for clip in data.clips] == splits
    assert [clip.target for clip in data.clips] == ["noise", "tone"] * 6


def test_the_log_mels_of_a_cache_are_those_of_the_sounds(maker, model, log_mels):
    for number in (0, 1):
        again = model.log_mel(maker.sound(number).astype(np.float32) / 32768, maker.RATE)
        audible = again > again.max(axis=0) - 0.8  # 80 dB below, float32 is at its end
        assert audible.any(axis=0).all()
        wanted, found = (np.asarray(each)[audible] for each in (log_mels[number], again))
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=0)  # half precision


@pytest.mark.parametrize("stage", ["one", "two"])
def test_the_same_seed_draws_the_same_clips_masks_and_augmentation(stage, expected):
    data = Cache(HOME / "cache")
    config = update(Config(), read_changes(HOME / "run" / "config.json"))
    training = {"one": config.pretrain.stage_one, "two": config.pretrain.stage_two}[stage]
    batches = Batches(data, split(data, config.pretrain).slices, config, stage, training)
    batch = batches(3)
    assert batch.clips.tolist() == expected[f"{stage}_clips"].tolist()
    assert batch.mask.tolist() == expected[f"{stage}_masked"].tolist()
    means = batch.patches.mean((2, 3, 4))
    np.testing.assert_allclose(means, expected[f"{stage}_patches"], atol=1e-5)


def test_the_config_of_a_run_means_what_it_meant():
    config = update(Config(), read_changes(HOME / "run" / "config.json"))
    assert (config.model.vector_norm, config.pretrain.extractor_lr_scale) == ("none", 1.0)
    assert (config.model.embed_dim, config.pretrain.n_patches) == (16, 3)
    assert config.pretrain.stage_two.schedule == "cosine"


def test_an_interrupted_run_goes_on_to_the_losses_and_the_model_it_would_have_had(
    maker, resumed, log_mels, expected
):
    losses = [float(row["loss"]) for row in rows_of(resumed / "stage-two" / "metrics.csv")]
    assert len(losses) == maker.STEPS
    np.testing.assert_allclose(losses, expected["losses"], atol=2e-5)
    validated = rows_of(resumed / "stage-two" / "validation.csv")
    assert [int(row["step"]) for row in validated] == [0, 4, 8, 12]
    vectors = embed.load(resumed / "model").embed_log_mels(log_mels)
    np.testing.assert_allclose(vectors, expected["vectors"], atol=1e-3)


def test_a_model_gives_the_vectors_it_gave_and_keeps_its_identity_when_saved_again(
    tmp_path, log_mels, expected
):
    checkpoint.save(tmp_path / "model", checkpoint.load(HOME / "model"))
    for folder in (HOME, tmp_path):
        found = embed.load(folder / "model")
        np.testing.assert_allclose(found.embed_log_mels(log_mels), expected["vectors"], atol=1e-5)
        assert found.identity == str(expected["identity"])


def test_a_fine_tuned_model_predicts_what_it_predicted(log_mels, expected):
    tuned = embed.load(HOME / "tuned")
    assert (tuned.task.kind, tuned.task.names) == ("one-of", ("noise", "tone"))
    found = [tuned.predict(iter([log_mel])) for log_mel in log_mels]
    np.testing.assert_allclose(found, expected["predictions"], atol=1e-5)


def test_a_table_is_read_with_its_facts(maker, expected):
    table = build.read(HOME / "music.parquet")
    paths = [f"{MUSIC}/{number:02}.wav" for number in range(maker.CLIPS) for _ in range(2)]
    assert list(table.paths) == paths
    assert (table.metadata["model"], table.metadata["window_s"]) == (str(expected["identity"]), 1.3)
    assert table.vectors.shape == (2 * maker.CLIPS, expected["vectors"].shape[1])


def test_a_table_holds_the_vectors_that_its_model_gives_today(maker, model):
    table = build.read(HOME / "music.parquet")
    # Noise: 90 dB below a pure tone the float32 FFT of another processor differs by 1e-3.
    found = model.embed_windows(maker.sound(4).astype(np.float32) / 32768, maker.RATE, window_s=1.3)
    np.testing.assert_allclose(found.vectors, table.vectors[8:10], atol=1e-4)
    np.testing.assert_allclose(found.start_s, table.start_s[8:10])


@pytest.mark.parametrize("place", ["music.parquet", "index"])
def test_a_table_and_an_index_name_what_they_named(place, tmp_path, model, expected):
    if place == "index":
        pytest.importorskip("lancedb")
        shutil.copytree(HOME / place, tmp_path / place)  # LanceDB may write beside what it reads
    store = search.load(tmp_path / place if place == "index" else HOME / place)
    found = store.similar(f"{MUSIC}/00.wav", 5)
    assert [Path(row.path).name for row in found] == expected["nearest"].tolist()
    np.testing.assert_allclose([row.score for row in found], expected["scores"], atol=1e-5)
    assert store.similar(expected["vectors"][0], 1, identity=model.identity)  # of the same model


def test_an_index_takes_up_todays_changes_of_its_table(tmp_path):
    pytest.importorskip("lancedb")
    shutil.copytree(HOME / "index", tmp_path / "index")
    changes = search.Index.open(tmp_path / "index").update(HOME / "music.parquet")
    assert changes == search.Changes(kept=12)


def test_a_model_of_one_scale_gives_the_vector_it_gave():
    found = embed.load(ONE_SCALE / "model")
    assert found.config.model.vector_norm == "layer"
    assert (found.config.model.embed_dim, found.config.pretrain.extractor_lr_scale) == (16, 0.1)
    vector = found.embed_log_mels([module_of(ONE_SCALE / "make.py").log_mel()])[0]
    expected = np.load(ONE_SCALE / "expected.npz")["vector"]
    np.testing.assert_allclose(vector, expected, atol=1e-5)
