"""The map: made in the background, kept on disk, coloured; and how vectors are laid out."""

import shutil
import threading
import time

import numpy as np
import pytest

from patchifier.app.layout import first_layout, lay_out, neighbours
from patchifier.app.map import POINT, Map


def finished(client):
    end = time.monotonic() + 60
    while (state := client.get("/api/map").json())["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


@pytest.fixture(scope="module")
def mapped(serve, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    shutil.copy(table, folder / "own.parquet")
    client = serve(folder / "own.parquet")
    assert client.get("/api/map").json()["state"] == "missing"
    assert client.get("/api/map/points").status_code == 409
    assert client.post("/api/map").json()["state"] in ("running", "done")
    assert finished(client)["state"] == "done"
    return client, folder


def points(client):
    body = client.get("/api/map/points").content
    count = int(np.frombuffer(body[:4], "<u4")[0])
    found = np.frombuffer(body[4:], POINT)
    assert len(found) == count
    return found


def test_points_and_ids_are_one_for_each_track(mapped, ids):
    client, _ = mapped
    found = points(client)
    assert len(found) == 6
    assert np.abs(np.stack([found["x"], found["y"]])).max() <= 1.0
    assert sorted(client.get("/api/map/ids").json()) == sorted(ids)


def test_a_second_server_takes_the_map_from_disk(mapped, serve):
    client, folder = mapped
    assert list(folder.glob("own.map-*.npy"))
    again = serve(folder / "own.parquet")
    assert again.get("/api/map").json()["state"] == "done"
    assert (points(again) == points(client)).all()


def test_first_points_are_there_while_the_map_is_made(serve, own, monkeypatch):
    go_on, lay_out_whole = threading.Event(), Map._in_process

    def slow(self, vectors):
        go_on.wait(30)
        return lay_out_whole(self, vectors)

    monkeypatch.setattr(Map, "_in_process", slow)
    client = serve(own)
    client.post("/api/map")
    end = time.monotonic() + 20
    while not (state := client.get("/api/map").json())["first"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert state["state"] == "running"
    first = points(client)
    assert np.ptp(first["x"]) > 0.5
    assert len(first) == len(client.get("/api/map/colours").json()["values"]) == 6
    assert not list(own.parent.glob("own.map-*.npy"))
    go_on.set()
    assert (finished(client)["state"], client.get("/api/map").json()["first"]) == ("done", False)
    assert list(own.parent.glob("own.map-*.npy"))


def test_first_places_are_the_principal_axes():
    vectors = np.random.default_rng(0).standard_normal((5000, 12)).astype(np.float32)
    vectors[:, 3] *= 9
    vectors[:, 7] *= 5
    places = first_layout(vectors).places
    for axis, column in enumerate((3, 7)):
        assert abs(np.corrcoef(places[:, axis], vectors[:, column])[0, 1]) > 0.99
    assert first_layout(vectors[:1]).places.shape == (1, 2)


def test_a_damaged_map_is_made_again(mapped, serve, tmp_path):
    _, folder = mapped
    shutil.copytree(folder, tmp_path / "copy")
    kept = next((tmp_path / "copy").glob("own.map-*.npy"))
    kept.write_bytes(kept.read_bytes()[:-10])
    client = serve(tmp_path / "copy" / "own.parquet")
    assert client.get("/api/map").json()["state"] == "missing"
    client.post("/api/map")
    assert finished(client)["state"] == "done"


def test_colours_are_categories_or_numbers(mapped):
    client, _ = mapped
    artists = client.get("/api/map/colours", params={"by": "artist"}).json()
    assert artists["kind"] == "category"
    assert artists["names"][0] == "Grieg"
    assert sum(value is None for value in artists["values"]) == 1
    clusters = client.get("/api/map/colours").json()
    assert set(clusters["values"]) == set(range(len(clusters["names"])))
    assert client.get("/api/map/colours", params={"by": "year"}).json()["kind"] == "number"
    assert client.get("/api/map/colours", params={"by": "taste"}).status_code == 400
    assert client.get("/api/map/colours", params={"by": "label:none"}).status_code == 404


def two_groups(count, size=20):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, size)) * 0.1
    vectors[: count // 2, 0] += 1
    vectors[count // 2 :, 1] += 1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_few_vectors_are_laid_out_along_axes_and_apart():
    for count in (1, 2, 14):
        found = lay_out(two_groups(count))
        assert found.places.shape == (count, 2)
        assert np.isfinite(found.places).all()
        assert found.clusters.shape == (count,)


def test_neighbours_are_the_nearest_each_first_its_own():
    axes = np.random.default_rng(1).standard_normal((700, 5)).astype(np.float32)
    places, distances = neighbours(axes, 4)
    exact = np.linalg.norm(axes[:, None] - axes[None], axis=2)
    assert (places[:, 0] == np.arange(700)).all()
    assert np.allclose(distances, np.sort(exact, axis=1)[:, :4], atol=2e-3)


@pytest.mark.slow
def test_groups_lie_apart_in_a_map_by_umap_and_a_seed_gives_the_same():
    vectors = two_groups(60)
    first, second = lay_out(vectors), lay_out(vectors)
    assert (first.places == second.places).all()
    centres = [first.places[part].mean(0) for part in (slice(0, 30), slice(30, 60))]
    spread = max(first.places[part].std(0).max() for part in (slice(0, 30), slice(30, 60)))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
