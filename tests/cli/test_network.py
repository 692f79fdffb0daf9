"""Nothing opens a socket of the internet unless the user asks for it.

Python tells an audit hook of every socket and every name that is looked up, in worker processes too.
"""

import json
import os
import subprocess
import sys

import pytest

from patchifier import audio, cli
from patchifier.devices import NO_TELEMETRY
from tests import published

HOOK = """
import errno, os, socket, sys

INTERNET = (socket.AF_INET, socket.AF_INET6)
LOOK_UPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")

def refuse(event, given):
    if not event.startswith("socket."):
        return
    caller = sys._getframe(1)
    if "_has_ipv6" in (caller.f_code.co_name, caller.f_back.f_code.co_name):
        return  # urllib3, when imported, binds to ::1 and closes
    opened = event == "socket.__new__" and given[1] in INTERNET
    used = event in ("socket.connect", "socket.bind", "socket.sendto") and type(given[1]) is tuple
    if opened or used or event in LOOK_UPS:
        with open(os.environ["SOCKETS"], "a") as log:
            log.write(f"{event} {given}\\n")
        raise OSError(errno.ENETUNREACH, "no network in this test")

sys.addaudithook(refuse)
"""
SCRIPT = """
import importlib, json, os, pkgutil, sys, time
import patchifier
from patchifier import cli

def imports():
    for module in pkgutil.walk_packages(patchifier.__path__, "patchifier."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return 0

if __name__ == "__main__":
    codes = {}
    for name, line in json.loads(sys.argv[1]).items():
        os.environ["SOCKETS"] = f"{name}.log"
        if name == "fetch":
            time.sleep = lambda seconds: None  # between its attempts
        codes[name] = imports() if name == "imports" else cli.main(line.split())
    with open("codes.json", "w") as file:
        json.dump(codes, file)
"""
QUIET = {  # command -> its smallest real input; the order counts
    "imports": "",
    "prepare": "clips.csv --out cache --workers 2",
    "pretrain": "cache --out run --config tiny.json --device cpu",
    "watch": "run",
    "finetune": "run/model cache --out tuned --config tiny.json --device cpu",
    "compare": "cache --encoders run/model,mel-stats --out compared",
    "leaks": "cache cache",
    "report": "compared --out page",
    "reconstruct": "0.wav --model run/model --out picture.png",
    "embed": "*.wav --model run/model --out all.parquet --workers 1",
    "similar": "all.parquet --to 0.wav",
    "path": "all.parquet --from 0.wav --to 1.wav --m3u path.m3u8",
    "mix": "all.parquet --seeds 0.wav",
    "duplicates": "all.parquet",
    "tag": "all.parquet",
    "index": "all.parquet --out index",
    "teach": "all.parquet clips.csv --model run/model --out head",
    "distance": "all.parquet all.parquet",
    "predict": "tuned/full/model 0.wav --out labels.csv --workers 1",
    "info": "run/model",
    "check": "emomusic --root published",
    "navidrome": ".",
}
ASKED = {"fetch": "emomusic --root fetched", "info": "hf://owner/name"}
SERVERS = {"app": "none.parquet --no_browser", "serve": "none.parquet"}
SLOW = {
    "export": "--onnx model.onnx",
    "demo": "--out demo --config tiny.json",
}
STEPS = {"paper"}  # runs the other commands, and none of those that download


@pytest.fixture(scope="module")
def run_quietly(tmp_path_factory, child_environment, tiny_settings, tone, noise):
    """Run commands without a network: their exit codes, and what each tried to open."""
    root = tmp_path_factory.mktemp("network")
    (root / "sitecustomize.py").write_text(HOOK)
    (root / "script.py").write_text(SCRIPT)
    (root / "tiny.json").write_text(json.dumps(tiny_settings))
    rows = ["path,target"]
    for number in range(20):
        sound = noise(2.5, seed=number) if number % 2 else tone(300 + 20 * number, seconds=2.5)
        audio.save(root / f"{number}.wav", sound)
        rows.append(f"{number}.wav,{'noise' if number % 2 else 'tone'}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    published.emomusic(root / "published", seconds=1.0)
    paths = os.pathsep.join([str(root), child_environment["PYTHONPATH"]])

    def run(lines):
        commands = {name: f"{name} {line}" for name, line in lines.items()}
        script = [sys.executable, "script.py", json.dumps(commands)]
        environment = child_environment | {"PYTHONPATH": paths, "SOCKETS": "start.log"}
        environment["HF_HUB_OFFLINE"] = "0"  # other tests set it
        environment |= {"HOME": str(root / "home"), "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
        environment.pop(NO_TELEMETRY, None)  # this process may have set it
        done = subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        tried = {path.stem: path.read_text() for path in root.glob("*.log")}
        for name in tried:
            (root / f"{name}.log").unlink()
        return json.loads((root / "codes.json").read_text()), tried

    run.home = root / "home"
    run.home.mkdir()
    return run


def test_every_command_is_here():
    assert {*QUIET, *ASKED, *SERVERS, *SLOW, *STEPS} - {"imports"} == set(cli.COMMANDS)


def test_no_command_opens_a_socket_unless_asked(run_quietly):
    codes, tried = run_quietly(QUIET)
    assert tried == {}
    assert {name for name, code in codes.items() if code} <= {"check"}  # 1: files are missing
    # matplotlib keeps a list of fonts; ONNX Runtime would write a device id and events
    assert {file.name for file in run_quietly.home.glob("*/*")} <= {"matplotlib"}


def test_what_is_asked_for_is_tried(run_quietly):
    codes, tried = run_quietly(ASKED)
    assert tried.keys() == ASKED.keys()
    assert codes == {"fetch": 1, "info": 2}


def test_a_server_opens_a_socket_of_this_machine_alone(run_quietly):
    codes, tried = run_quietly(SERVERS)
    assert codes == dict.fromkeys(SERVERS, 2)
    assert tried.keys() == SERVERS.keys()
    for log in tried.values():
        assert all("127.0.0.1" in line for line in log.splitlines())


@pytest.mark.slow
def test_no_long_command_opens_one(run_quietly):
    codes, tried = run_quietly(SLOW)
    assert (codes, tried) == (dict.fromkeys(SLOW, 0), {})
