"""What `pip install patchifier` takes: bytes and seconds of a fresh environment without torch, and what works in it.

    python benchmarks/install.py [--torch] [--check]

Builds the wheel, makes an empty environment, installs the wheel with the versions of constraints.txt, and runs the commands of the runtime in it
on the bundled clips; `serve` after its two packages. Asked for are at most 400 MB. With --torch the same environment then gets the extra `train`, for comparison. Exit code 1 if
a command fails or torch is there before.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

from timing import keep

ROOT = Path(__file__).parents[1]
CLIPS = ROOT / "src" / "patchifier" / "datasets" / "demo_clips" / "clips"
MOST_MB = 400
COMMANDS = [
    "info",
    "info --system",
    "embed {music} --out {out}.parquet --workers 1",
    "similar {out}.parquet --to {song}",
    "path {out}.parquet --from {song} --to {last}",
    "duplicates {out}.parquet",
    "predict drums {song} --out {out}.csv",
    "distance {out}.parquet {out}.parquet",
    "prepare {music} --out {out}.cache --workers 1",
    "export patchifier-base --graphs",
]
INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")  # in an empty environment
SERVER = ("starlette", "uvicorn")  # of the extra app, whose map needs numba too
NEEDS_TORCH = {"export patchifier-base --graphs"}  # refused, with the command that installs it


def size_mb(folder):
    """Bytes on disk of packages with their bytecode, without what an empty environment has, in MB."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(INSTALLERS)
    ]
    return sum(path.stat().st_size for path in files) / 1e6


def packages_mb(site):
    """Size of each package's folder, the largest first."""
    sizes = {path.name: size_mb(path) for path in site.iterdir() if path.is_dir()}
    return dict(sorted(sizes.items(), key=lambda pair: -pair[1])[:10])


def build(folder):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment(folder):
    """Python of a new environment that has pip, and the folder of its packages."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return python, Path(site.stdout.strip())


def install(python, *what):
    """Seconds that pip takes."""
    started = time.perf_counter()
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *what], check=True)
    return time.perf_counter() - started


def run(python, words, **places):
    """Run a command of the installed package, and return its exit code and what it printed."""
    words = [word.format(**places) for word in words.split()]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    made = subprocess.run(
        [python, "-m", "patchifier", *words],
        capture_output=True,
        text=True,
        check=False,
        env=clean,
        cwd=places["cwd"],
    )
    return made.returncode, made.stdout + made.stderr


def answer_of_server(python, table, cwd):
    """What 'patchifier serve' answers about a table, started and ended here; what it said if it does not."""
    words = [python, "-m", "patchifier", "serve", table, "--port", "0"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean, cwd=cwd
    )
    try:
        printed = []
        for line in server.stdout:  # ends with the server
            printed.append(line)
            if found := re.search(r"http://\S+openapi\.json", line):
                with urllib.request.urlopen(found[0], timeout=60) as answer:
                    return json.load(answer)
        return {"printed": "".join(printed)}
    finally:
        server.terminate()
        server.wait(timeout=60)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", action="store_true", help="then install the extra train too")
    parser.add_argument("--check", action="store_true", help="keep no results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        music = folder / "music"
        music.mkdir()
        for path in sorted(CLIPS.iterdir())[:12]:
            shutil.copy(path, music)
        python, site = environment(folder / "environment")
        seconds = install(python, str(build(folder / "dist")))
        results = {"MB": size_mb(site), "seconds": seconds, "packages": packages_mb(site)}
        for package, mb in results["packages"].items():
            print(f"{package:<40}{mb:>8.1f} MB")
        print(f"{'all of it':<40}{results['MB']:>8.1f} MB in {seconds:.0f} s", flush=True)
        failed = ["torch is there"] if (site / "torch").exists() else []
        places = {"music": music, "out": folder / "table", "cwd": folder}
        places["song"], *_, places["last"] = sorted(music.iterdir())
        for words in COMMANDS:
            code, said = run(python, words, **places)
            right = (code == 2 and "needs torch" in said) if words in NEEDS_TORCH else code == 0
            print(f"{'works' if right else 'FAILS':<8}patchifier {words}", flush=True)
            failed += [] if right else [said]
        install(python, *SERVER)
        answer = answer_of_server(python, folder / "table.parquet", folder)
        right = "paths" in answer and not (site / "torch").exists()
        print(f"{'works' if right else 'FAILS':<8}patchifier serve {{out}}.parquet", flush=True)
        failed += [] if right else [str(answer)]
        if options.torch:
            results["seconds of train"] = install(python, "patchifier[train]")
            results["MB with train"] = size_mb(site)
            print(f"{'with train':<40}{results['MB with train']:>8.1f} MB")
        print(*failed, sep="\n")
        if not (options.check or failed or results["MB"] > MOST_MB):
            keep("install", results)
    sys.exit(bool(failed) or results["MB"] > MOST_MB)


if __name__ == "__main__":
    main()
