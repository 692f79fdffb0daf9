"""The plugin of Navidrome: a package of ``manifest.json`` and ``plugin.wasm``.

``plugin.wasm`` is ``plugin.c``, compiled by 'make navidrome-plugin'. It hands questions to
'patchifier serve', where :mod:`patchifier.app.navidrome` answers.
"""

import json
import zipfile
from pathlib import Path

import patchifier
from patchifier.config import RequestError
from patchifier.io import replaced_file

FOLDER = Path(__file__).parent
NAME = "patchifier.ndp"


def write_plugin(folder: str | Path) -> Path:
    """Write the plugin's package into Navidrome's folder of plugins, the same bytes each time."""
    if not Path(folder).is_dir():
        raise RequestError(f"{folder} is no folder, expected Navidrome's folder of plugins.")
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    manifest["version"] = patchifier.__version__
    out = Path(folder) / NAME
    contents = {
        "manifest.json": json.dumps(manifest, indent=2).encode(),
        "plugin.wasm": (FOLDER / "plugin.wasm").read_bytes(),
    }
    with replaced_file(out) as new, zipfile.ZipFile(new, "w") as files:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)  # of 1980
            entry.create_system = 3  # Unix, wherever it is written
            files.writestr(entry, content)
    return out
