"""Models by name from a hub, and to it: a server of our own speaks the hub's language."""

import base64
import hashlib
import json
import os
import re
import sys
from pathlib import Path

# read when huggingface_hub is imported: no test may reach for a network
os.environ["HF_HUB_OFFLINE"] = "1"

import huggingface_hub
import numpy as np
import pytest
import transformers

import patchifier
from patchifier import audio, checkpoint, cli, embed
from patchifier.checkpoint import Checkpoint
from patchifier.config import RequestError
from patchifier.evaluate.encoders import encoders
from patchifier.integrations import hf
from patchifier.nn.model import Patchifier
from tests import small
from tests.servers import Handler, serving

RATE = 22_050
CONFIG = small.config(small.WIDE)
NAME = "some-body/mu.sic"
GRAPHS = {"graph.onnx", "reconstruct.onnx"}


class HubHandler(Handler):
    """What a hub answers about models: facts, trees, files; a new repository, uploads, a commit."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((path, self.command))
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if about and (files := self.found(about[1], about[3] or "main")):
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": sha(content)}
                for name, content in files.items()
            ]
            facts = {"id": about[1], "modelId": about[1], "sha": commit(files)}
            facts["siblings"] = [{"rfilename": name} for name in files]
            self.tell(listed if about[2] == "tree" else facts)
        elif file and (files := self.found(file[1], file[2])):
            self.give(files, file[3])

    do_HEAD = do_GET

    def found(self, name, revision):
        revisions = self.server.repositories.get(name)
        if revisions is None:
            return self.refuse(404, "RepoNotFound")
        by_commit = {commit(files): files for files in revisions.values()}
        files = (revisions | by_commit).get(revision)
        return self.refuse(404, "RevisionNotFound") if files is None else files

    def give(self, files, file):
        if self.server.gated:
            self.refuse(403, "GatedRepo")
        elif file not in files:
            self.refuse(404, "EntryNotFound")
        else:
            content = files[file]
            head = {"ETag": f'"{sha(content)}"', "X-Repo-Commit": commit(files)}
            end = 100 if self.server.cut == file else None
            self.answer(200, content[:end], length=len(content), **head)

    def do_POST(self):
        path, server = self.path.partition("?")[0], self.server
        server.asked.append((path, self.command))
        server.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if path == "/api/validate-yaml":
            server.cards.append(json.loads(body)["content"])
            self.tell({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            server.repositories.setdefault(name, {"main": {".gitattributes": b""}})
            self.tell({"url": server.url(f"/{name}")})
        elif re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = {True: "lfs", False: "regular"}  # the hub's own rule: weights go another way
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = {name: modes[name.endswith(".safetensors")] for name in names}
            files = [{"path": name, "uploadMode": mode} for name, mode in modes.items()]
            self.tell({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": server.url(f"/store/{one['oid']}")}}
            self.tell({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            revisions = server.repositories[match[1]]
            files = revisions["main"] = dict(revisions["main"])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = server.store[value["oid"]]
            url = server.url(f"/{match[1]}/commit/{commit(files)}")
            self.tell({"commitUrl": url, "commitOid": commit(files)})

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.store[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def tell(self, facts):
        self.answer(200, json.dumps(facts).encode(), **{"Content-Type": "application/json"})

    def refuse(self, code, why):
        self.answer(code, **{"X-Error-Code": why})

    def answer(self, code, body=b"", *, length=None, **head):
        self.send_response(code)
        head["Content-Length"] = len(body) if length is None else length
        for name, value in head.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.close_connection = True


def sha(content):
    return hashlib.sha1(content).hexdigest()


def commit(files):
    parts = (name + sha(content) for name, content in sorted(files.items()))
    return sha("".join(parts).encode())


def save(path, seed, **more):
    network = Patchifier(CONFIG, seed=seed).eval()
    checkpoint.save(path, Checkpoint(network, CONFIG, **more))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("hub") / "model", 0, facts={"steps": 7})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    """A hub with one model of ours, two that are not, and one without weights; a new cache."""
    with serving() as server:
        server.RequestHandlerClass, server.gated, server.cut = HubHandler, False, ""
        server.store, server.tokens, server.cards = {}, set(), []
        other = content(save(tmp_path / "other", 1))
        bert = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 1000}
        server.repositories = {
            NAME: {"main": content(folder), "v1.0": other},
            "google/bert": {"main": bert},
            "any/text": {"main": {"README.md": b"hello"}},
            "torn/apart": {"main": {"config.json": other["config.json"]}},
        }
        template = server.url("/{repo_id}/resolve/{revision}/{filename}")
        for name, value in {
            "ENDPOINT": server.url(""),
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield server


@pytest.fixture
def no_network(monkeypatch):
    """Nobody listens there."""
    address = "http://127.0.0.1:9"
    return lambda: monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).uniform(-1, 1, RATE).astype(np.float32)


# --- from a hub ---


def test_a_model_is_loaded_by_its_name(hub, folder, wave):
    expected = embed.load(folder).embed(wave, RATE)
    for name in (f"hf://{NAME}", f"hf://{NAME}@main", hf.from_hub(NAME)):
        np.testing.assert_array_equal(embed.load(name).embed(wave, RATE), expected)
    # a path has one slash
    assert embed.load(Path(f"hf://{NAME}")).identity == embed.load(folder).identity


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, folder):
    tagged = embed.load(f"hf://{NAME}@v1.0").identity
    assert tagged != embed.load(folder).identity
    number = commit(hub.repositories[NAME]["v1.0"])
    assert embed.load(f"hf://{NAME}@{number}").identity == tagged
    said = rf"'{NAME}' has no revision 'v9'.*branches, tags or commits"
    with pytest.raises(RequestError, match=said):
        embed.load(f"hf://{NAME}@v9")


def test_an_encoder_may_be_named_so_with_a_revision_and_a_pooling(hub, folder):
    def identity(name):
        return encoders(name)[0].identity

    of_folder, tagged = identity(str(folder)), identity(f"hf://{NAME}@v1.0")
    pooled = identity(f"{folder}@mean")
    assert of_folder == identity(f"hf://{NAME}") == identity(f"model:hf://{NAME}")
    assert identity(f"hf://{NAME}@mean") == pooled
    assert len({of_folder, tagged, pooled, identity(f"hf://{NAME}@v1.0@mean")}) == 4


def test_what_was_downloaded_is_not_asked_for_again_and_needs_no_network(hub, folder, no_network):
    hf.from_hub(NAME)
    hub.asked.clear()
    again = hf.from_hub(NAME)
    assert not [path for path, command in hub.asked if command == "GET" and "/resolve/" in path]
    no_network()
    assert hf.from_hub(f"hf://{NAME}") == again
    assert hf.from_hub(NAME, local_files_only=True) == again
    assert embed.load(hf.from_hub(NAME)).identity == embed.load(folder).identity


def test_only_a_models_files_are_downloaded(hub):
    hub.repositories[NAME]["main"]["pytorch_model.bin"] = b"a pickle"
    files = {path.name for path in hf.from_hub(NAME).iterdir()}
    assert files == {"config.json", "model.safetensors", "README.md"} | GRAPHS


def test_without_a_network_the_error_says_so(hub, no_network):
    no_network()
    said = rf"does not give '{NAME}'.*Check the name and the network"
    with pytest.raises(RequestError, match=said):
        embed.load(f"hf://{NAME}")


def test_unknown_gated_and_torn_repositories_are_refused_with_what_to_do(hub):
    hub.gated = True
    gated = rf"'{NAME}' is on the hub for those alone who were let in.*hf auth login"
    with pytest.raises(RequestError, match=gated):
        embed.load(f"hf://{NAME}")
    hub.gated = False
    for name, said in {
        "some-body/nothing": "no model 'some-body/nothing' that you may see: check the name; if it "
        "is private, sign in",
        "torn/apart": r"'torn/apart' has no model\.safetensors, expected a model folder",
    }.items():
        with pytest.raises(RequestError, match=said):
            embed.load(f"hf://{name}")


@pytest.mark.parametrize("name", ["google/bert", "any/text"])
def test_a_repository_of_others_is_refused_before_its_weights_arrive(hub, name):
    with pytest.raises(RequestError, match=f"'{name}' is no model of this package"):
        embed.load(f"hf://{name}")
    assert not [path for path, _ in hub.asked if path.endswith("model.safetensors")]


def test_a_download_that_is_cut_is_an_error_and_goes_on_the_next_time(hub, folder, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's own attempts
    hub.cut = "model.safetensors"
    with pytest.raises(RequestError, match=rf"does not give '{NAME}'"):
        hf.from_hub(f"hf://{NAME}")
    hub.cut = ""
    assert embed.load(f"hf://{NAME}").identity == embed.load(folder).identity


NO_NAMES = ["", "b", "a/b/c", "../b/c", "a/b@", "a b/c", "https://a/b", "s3://a/b", "hf://b"]


@pytest.mark.parametrize("name", [*NO_NAMES, "hf://", "hf://a/b/c", "hf://a/b@"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(RequestError, match="expected owner/name"):
        hf.from_hub(name)


def test_a_name_will_do_wherever_a_model_is_asked_for(hub, folder, wave, capsys, tmp_path):
    name, expected = f"hf://{NAME}", embed.load(folder)
    assert patchifier.load(name).identity == expected.identity
    assert patchifier.load(Path(name)).identity == expected.identity
    assert patchifier.load(f"{name}@v1.0").identity != expected.identity
    assert checkpoint.load(name).facts == {"steps": 7}
    audio.save(tmp_path / "song.wav", wave)
    command = f"embed {tmp_path}/song.wav --model {name} --out {tmp_path}/x.parquet --workers 1"
    assert cli.main(command.split()) == 0, capsys.readouterr().err
    with pytest.raises(RequestError, match="may see"):
        patchifier.load("hf://some-body/nothing")


def test_without_the_hubs_package_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RequestError, match=r"huggingface_hub.*pip install 'patchifier\[hf\]'"):
        patchifier.load(f"hf://{NAME}")


# --- to a hub, and back ---


def test_a_model_that_is_pushed_comes_back_the_same(hub, folder, wave):
    model = hf.HubModel.from_pretrained(folder)
    url = model.push_to_hub("me/mine", token="hf_secret")
    files = hub.repositories["me/mine"]["main"]
    names = {"config.json", "model.safetensors", "README.md", "preprocessor_config.json"} | GRAPHS
    names |= {"modeling_patchifier.py"}
    assert set(files) == {".gitattributes", *names}
    assert files["model.safetensors"] in hub.store.values()  # weights went the way of large files
    assert url == hub.url(f"/me/mine/commit/{commit(files)}")
    assert hub.tokens == {"Bearer hf_secret"}
    assert "license: apache-2.0" in hub.cards[0]
    for revision in ({}, {"revision": "main"}):
        back = hf.HubModel.from_pretrained("me/mine", **revision)
        assert back.facts == {"steps": 7}
        np.testing.assert_array_equal(back.embed(wave, RATE), model.embed(wave, RATE))
    found, expected = embed.load("hf://me/mine"), embed.load(folder)
    assert found.identity == expected.identity
    np.testing.assert_array_equal(found.embed(wave, RATE), expected.embed(wave, RATE))


def test_the_auto_classes_read_what_was_pushed(hub, folder, wave):
    hf.HubModel.from_pretrained(folder).push_to_hub("me/mine", token="hf_secret")
    model = transformers.AutoModel.from_pretrained("me/mine")
    extractor = transformers.AutoFeatureExtractor.from_pretrained("me/mine")
    found = model(**extractor(wave, sampling_rate=RATE, return_tensors="pt")).pooler_output[0]
    expected = embed.load(folder).embed(wave, RATE)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_pushing_without_a_network_leaves_no_trace_of_success(hub, folder, no_network):
    no_network()
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
