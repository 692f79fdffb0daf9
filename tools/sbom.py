"""Write an SBOM: a list, in CycloneDX's JSON, of what requirements.lock installs.

    python tools/sbom.py dist/patchifier.cdx.json

C libraries are components of the Python package whose wheel brings them, in the versions of the
machine that writes the list.
"""

import json
import subprocess
import sys
from pathlib import Path

import patchifier
from patchifier import system

ROOT = Path(__file__).parents[1]


def main(out: Path) -> None:
    """Write the list."""
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements"]
    options = ["--pyproject", "pyproject.toml", "--output-reproducible", "--of", "JSON"]
    subprocess.run(
        [*command, "requirements.lock", *options, "-o", out.absolute()], cwd=ROOT, check=True
    )
    bom = json.loads(out.read_text())
    bom["metadata"]["component"]["version"] = patchifier.__version__
    for component in bom["components"]:
        del component["description"]  # the line of requirements.lock, hashes and all
        if inside := libraries(component["name"]):
            component["components"] = inside
    out.write_text(json.dumps(bom, indent=1) + "\n")


def libraries(package: str) -> list[dict[str, str]]:
    """Return the C libraries of a package as components."""
    found = [one for one in system.libraries() if one.package == package and one.version]
    return [
        {
            "type": "library",
            "bom-ref": f"{package}/{one.name}",
            "name": one.name,
            "version": one.version,
            "purl": f"pkg:generic/{one.name.lower()}@{one.version}",
        }
        for one in found
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
