"""Models by name from a hub, and to it: against a server of our own that speaks the hub's language."""

import base64
import hashlib
import json
import os
import re
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when huggingface_hub is imported: no test may reach for a network
)

import huggingface_hub
import numpy as np
import pytest
import transformers

import patchifier
from patchifier import audio, checkpoint, cli, embed
from patchifier.checkpoint import Checkpoint
from patchifier.config import Config, RequestError, update
from patchifier.evaluate.encoders import encoders
from patchifier.integrations import hf
from patchifier.nn.model import Patchifier
from tests.servers import Handler, serving

RATE = 22_050
CONFIG = update(
    Config(),
    {
        "model": {
            "channels": [4, 4, 8, 8, 16],
            "embed_dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "mlp_dim": 64,
        }
    },
)


class HubHandler(Handler):
    """What a hub answers about repositories of models: facts, trees, files; a new repository, uploads, a commit."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path.partition("?")[0], self.command))
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, what, revision = match[1], match[2], match[3] or "main"
            if files := self.found(name, revision):
                listed = [
                    {"type": "file", "path": file, "size": len(content), "oid": sha(content)}
                    for file, content in files.items()
                ]
                facts = {
                    "id": name,
                    "modelId": name,
                    "sha": commit(files),
                    "siblings": [{"rfilename": file} for file in files],
                }
                self.tell(listed if what == "tree" else facts)
        elif (match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)) and (
            files := self.found(match[1], match[2])
        ):
            self.give(files, match[3])

    do_HEAD = do_GET

    def found(self, name: str, revision: str) -> dict[str, bytes] | None:
        revisions = self.server.repositories.get(name)
        if revisions is None:
            return self.refuse(404, "RepoNotFound")
        files = {**revisions, **{commit(files): files for files in revisions.values()}}.get(
            revision
        )
        return self.refuse(404, "RevisionNotFound") if files is None else files

    def give(self, files: dict[str, bytes], file: str) -> None:
        if self.server.gated:
            self.refuse(403, "GatedRepo")
        elif file not in files:
            self.refuse(404, "EntryNotFound")
        else:
            content = files[file]
            head = {
                "ETag": f'"{sha(content)}"',
                "X-Repo-Commit": commit(files),
                "Content-Length": str(len(content)),
            }
            cut = self.command == "GET" and self.server.cut == file
            self.answer(
                200, head, b"" if self.command == "HEAD" else content[:100] if cut else content
            )

    def do_POST(self) -> None:
        self.server.asked.append((self.path.partition("?")[0], self.command))
        self.server.tokens.add(self.headers.get("Authorization"))
        body, path = (
            self.rfile.read(int(self.headers["Content-Length"])),
            self.path.partition("?")[0],
        )
        if path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self.tell({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.repositories.setdefault(name, {"main": {".gitattributes": b""}})
            self.tell({"url": self.server.url(f"/{name}")})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = {True: "lfs", False: "regular"}  # the hub's own rule: weights go another way
            files = [
                {
                    "path": one["path"],
                    "uploadMode": modes[one["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self.tell({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": self.server.url(f"/store/{one['oid']}")}}}
                for one in json.loads(body)["objects"]
            ]
            self.tell({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            files = self.server.repositories[match[1]]["main"] = dict(
                self.server.repositories[match[1]]["main"]
            )
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.store[value["oid"]]
            self.tell(
                {
                    "commitUrl": self.server.url(f"/{match[1]}/commit/{commit(files)}"),
                    "commitOid": commit(files),
                }
            )

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.store[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, {"Content-Length": "0"}, b"")

    def tell(self, facts: object) -> None:
        body = json.dumps(facts).encode()
        self.answer(
            200,
            {"Content-Type": "application/json", "Content-Length": str(len(body))},
            b"" if self.command == "HEAD" else body,
        )

    def refuse(self, code: int, why: str) -> None:
        self.answer(code, {"X-Error-Code": why, "Content-Length": "0"}, b"")

    def answer(self, code: int, head: dict[str, str], body: bytes) -> None:
        self.send_response(code)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


def sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def commit(files: dict[str, bytes]) -> str:
    return sha(
        b"".join(name.encode() + sha(content).encode() for name, content in sorted(files.items()))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "model"
    checkpoint.save(path, Checkpoint(Patchifier(CONFIG, seed=0).eval(), CONFIG, facts={"steps": 7}))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    """A hub with one model of ours, two that are not, and one that lacks its weights; what is downloaded goes to a new cache."""
    with serving() as server:
        server.RequestHandlerClass, server.gated, server.cut = HubHandler, False, ""
        server.store, server.tokens, server.cards = {}, set(), []
        other = tmp_path / "other"
        checkpoint.save(other, Checkpoint(Patchifier(CONFIG, seed=1).eval(), CONFIG))
        bert = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 1000}
        server.repositories = {
            "some-body/mu.sic": {"main": content(folder), "v1.0": content(other)},
            "google/bert": {"main": bert},
            "any/text": {"main": {"README.md": b"hello"}},
            "torn/apart": {"main": {"config.json": content(folder)["config.json"]}},
        }
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url(""))
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url("/{repo_id}/resolve/{revision}/{filename}"),
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)


# --- from a hub ---


def test_a_model_is_loaded_by_its_name(hub, folder, wave):
    expected = embed.load(folder).embed(wave, RATE)
    for name in (
        "hf://some-body/mu.sic",
        "hf://some-body/mu.sic@main",
        hf.from_hub("some-body/mu.sic"),
    ):
        np.testing.assert_array_equal(embed.load(name).embed(wave, RATE), expected)
    assert (
        embed.load(Path("hf://some-body/mu.sic")).identity == embed.load(folder).identity
    )  # a path has one slash


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, folder):
    tagged = embed.load("hf://some-body/mu.sic@v1.0").identity
    assert tagged != embed.load(folder).identity
    assert (
        embed.load(
            f"hf://some-body/mu.sic@{commit(hub.repositories['some-body/mu.sic']['v1.0'])}"
        ).identity
        == tagged
    )
    with pytest.raises(
        RequestError, match=r"'some-body/mu.sic' has no revision 'v9'.*branches, tags or commits"
    ):
        embed.load("hf://some-body/mu.sic@v9")


def test_an_encoder_may_be_named_so_with_a_revision_and_a_pooling(hub, folder):
    found = {
        name: encoders(name)[0]
        for name in (
            str(folder),
            "hf://some-body/mu.sic",
            "model:hf://some-body/mu.sic",
            "hf://some-body/mu.sic@v1.0",
        )
    }
    of_folder, by_name, by_row, tagged = (encoder.identity for encoder in found.values())
    assert of_folder == by_name == by_row != tagged
    assert (
        encoders("hf://some-body/mu.sic@mean")[0].identity
        == encoders(f"{folder}@mean")[0].identity
        != of_folder
    )
    assert encoders("hf://some-body/mu.sic@v1.0@mean")[0].identity not in (
        tagged,
        encoders(f"{folder}@mean")[0].identity,
    )


def test_what_was_downloaded_is_not_asked_for_again_and_needs_no_network(hub, folder, monkeypatch):
    hf.from_hub("some-body/mu.sic")
    hub.asked.clear()
    again = hf.from_hub("some-body/mu.sic")
    assert not [path for path, command in hub.asked if command == "GET" and "/resolve/" in path]
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # nobody listens there
    assert hf.from_hub("hf://some-body/mu.sic") == again
    assert hf.from_hub("some-body/mu.sic", local_files_only=True) == again
    assert embed.load(hf.from_hub("some-body/mu.sic")).identity == embed.load(folder).identity


def test_only_a_models_files_are_downloaded(hub):
    hub.repositories["some-body/mu.sic"]["main"]["pytorch_model.bin"] = b"a pickle"
    found = hf.from_hub("some-body/mu.sic")
    assert {path.name for path in found.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }


def test_without_a_network_the_error_says_so(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        RequestError, match=r"does not give 'some-body/mu.sic'.*Check the name and the network"
    ):
        embed.load("hf://some-body/mu.sic")


def test_an_unknown_repository_is_named(hub):
    with pytest.raises(
        RequestError,
        match=r"no model 'some-body/nothing' that you may see: check the name; if it is private, sign in",
    ):
        embed.load("hf://some-body/nothing")


def test_a_gated_repository_says_what_to_do(hub):
    hub.gated = True
    with pytest.raises(
        RequestError,
        match=r"'some-body/mu.sic' is on the hub for those alone who were let in.*hf auth login",
    ):
        embed.load("hf://some-body/mu.sic")


@pytest.mark.parametrize("name", ["google/bert", "any/text"])
def test_a_repository_of_others_is_refused_before_its_weights_arrive(hub, name):
    with pytest.raises(RequestError, match=f"'{name}' is no model of this package"):
        embed.load(f"hf://{name}")
    assert not [path for path, _ in hub.asked if path.endswith("model.safetensors")]


def test_a_repository_without_weights_is_refused(hub):
    with pytest.raises(
        RequestError, match=r"'torn/apart' has no model\.safetensors, expected a model folder"
    ):
        embed.load("hf://torn/apart")


def test_a_download_that_is_cut_is_an_error_and_goes_on_the_next_time(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's own attempts
    hub.cut = "model.safetensors"
    with pytest.raises(RequestError, match=r"does not give 'some-body/mu.sic'"):
        hf.from_hub("hf://some-body/mu.sic")
    hub.cut = ""
    assert embed.load("hf://some-body/mu.sic").identity == embed.load(folder).identity


@pytest.mark.parametrize("name", ["hf://", "hf://b", "hf://a/b/c", "hf://a/b@", "s3://a/b"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(RequestError, match="expected owner/name"):
        hf.from_hub(name)


def test_a_name_will_do_wherever_a_model_is_asked_for(hub, folder, wave, capsys, tmp_path):
    name, expected = "hf://some-body/mu.sic", embed.load(folder)
    assert patchifier.load(name).identity == expected.identity
    assert patchifier.load(Path(name)).identity == expected.identity
    assert patchifier.load(f"{name}@v1.0").identity != expected.identity
    assert checkpoint.load(name).facts == {"steps": 7}
    audio.save(tmp_path / "song.wav", wave)
    arguments = [
        "embed",
        str(tmp_path / "song.wav"),
        "--model",
        name,
        "--out",
        str(tmp_path / "x.parquet"),
        "--workers",
        "1",
        "--json",
    ]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    with pytest.raises(RequestError, match="may see"):
        patchifier.load("hf://some-body/nothing")


def test_without_the_hubs_package_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RequestError, match=r"huggingface_hub.*pip install 'patchifier\[hf\]'"):
        patchifier.load("hf://some-body/mu.sic")


# --- to a hub, and back ---


def test_a_model_that_is_pushed_comes_back_the_same(hub, folder, wave):
    url = hf.HubModel.from_pretrained(folder).push_to_hub("me/mine", token="hf_secret")
    files = hub.repositories["me/mine"]["main"]
    assert set(files) == {
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "README.md",
        "preprocessor_config.json",
    }
    assert files["model.safetensors"] in hub.store.values()  # weights went the way of large files
    assert url == hub.url(f"/me/mine/commit/{commit(files)}")
    assert hub.tokens == {"Bearer hf_secret"}
    assert "license: apache-2.0" in hub.cards[0]
    for back in (
        hf.HubModel.from_pretrained("me/mine"),
        hf.HubModel.from_pretrained("me/mine", revision="main"),
    ):
        assert back.facts == {"steps": 7}
        np.testing.assert_array_equal(back.embed(wave, RATE), embed.load(folder).embed(wave, RATE))
    assert embed.load("hf://me/mine").identity == embed.load(folder).identity


def test_the_auto_classes_read_what_was_pushed(hub, folder, wave):
    hf.HubModel.from_pretrained(folder).push_to_hub("me/mine", token="hf_secret")
    model, extractor = (
        transformers.AutoModel.from_pretrained("me/mine"),
        transformers.AutoFeatureExtractor.from_pretrained("me/mine"),
    )
    found = model(**extractor(wave, sampling_rate=RATE, return_tensors="pt")).pooler_output[0]
    np.testing.assert_allclose(
        found.detach().numpy(), embed.load(folder).embed(wave, RATE), atol=1e-5
    )


def test_pushing_without_a_network_leaves_no_trace_of_success(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"(?i)refused|connect"):
        hf.HubModel.from_pretrained(folder).push_to_hub("me/mine", token="hf_secret")
    assert "me/mine" not in hub.repositories


def test_a_hub_models_errors_are_those_of_loading(hub):
    for name, said in [
        ("some-body/nothing", "may see"),
        ("google/bert", "no model of this package"),
        ("a/b@", "expected owner/name"),
    ]:
        with pytest.raises(RequestError, match=said):
            hf.HubModel.from_pretrained(name)
