"""Copy the page's JavaScript libraries into src/patchifier/app/page/vendor, in exact versions.

    python tools/page.py            # needs npm and a registry; writes HASHES when it is missing
    python tools/page.py --renew    # after another version was named in tools/page: new HASHES

npm installs what tools/page/package-lock.json names, each package checked by its hash, into a
temporary folder. esbuild makes one file of regl-scatterplot and what it imports. The result has
the same bytes each time, and a test compares them with HASHES.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ROOT / "tools" / "page"
VENDOR = ROOT / "src" / "patchifier" / "app" / "page" / "vendor"
INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent")
BUNDLE = ("--bundle", "--minify", "--format=esm", "--target=es2022", "--legal-comments=none")


def main(*, renew: bool = False) -> None:
    """Write the files, and compare them with HASHES."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(VERSIONS / name, work / name)
        subprocess.run(INSTALL, cwd=work, check=True)
        made = build(work)
    hashes = "".join(f"{digest(data)}  {name}\n" for name, data in sorted(made.items()))
    kept = VENDOR / "HASHES"
    if not renew and kept.exists() and kept.read_text() != hashes:
        sys.exit("The files differ from vendor/HASHES. If that is meant, run it with --renew.")
    VENDOR.mkdir(parents=True, exist_ok=True)
    for name, data in made.items():
        (VENDOR / name).write_bytes(data)
    kept.write_text(hashes)


def build(work: Path) -> dict[str, bytes]:
    """Return the content of each vendored file by its name."""
    packages = work / "node_modules"
    entry = work / "entry.js"
    entry.write_text("export { default } from 'regl-scatterplot';\n")
    esbuild = packages / ".bin" / "esbuild"
    bundle = subprocess.run([esbuild, entry, *BUNDLE], cwd=work, check=True, capture_output=True)
    return {
        "wavesurfer.js": (packages / "wavesurfer.js" / "dist" / "wavesurfer.esm.js").read_bytes(),
        "regl-scatterplot.js": bundle.stdout,
        "LICENCES.txt": licences(packages).encode(),
    }


def licences(packages: Path) -> str:
    """Join the licence of every package that a vendored file holds a part of."""
    lock = json.loads((VERSIONS / "package-lock.json").read_text())["packages"]
    texts = []
    for path, entry in sorted(lock.items()):
        name = path.removeprefix("node_modules/")
        if not path or "esbuild" in name:  # esbuild is the tool, and is not in the result
            continue
        (text,) = (packages / name).glob("LICENSE*")
        title = f"{name} {entry['version']} ({entry['license']})"
        texts.append(f"{title}\n{'=' * len(title)}\n\n{text.read_text().strip()}\n")
    return "\n\n".join(texts)


def digest(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main(renew="--renew" in sys.argv[1:])
