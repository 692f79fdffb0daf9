"""The import rules of DESIGN.md section 3, checked on the source text."""

import ast
import subprocess
import sys
from pathlib import Path

import patchifier

ROOT = Path(patchifier.__file__).parent
LAYERS = [  # a part imports only from lines above its own
    {"config_names"},
    {"config", "io"},
    {
        "statistics",
        "seeding",
        "filters",
        "power",
        "predictors",
        "extras",
        "lazy",
        "devices",
        "channels",
    },
    {"containers", "sandbox", "system"},
    {"decode", "hub"},
    {"excerpts"},
    {"tasks", "audio", "spectrogram", "fingerprint", "jobs", "weights"},
    {"levels"},
    {"windows", "graph", "datasets", "estimates", "matching", "head_files"},
    {"model_folder", "heads"},
    {"inputs"},
    {"embed"},
    {"library"},
    {"app"},
    {"nn", "augment"},
    {"checkpoint"},
    {"cache"},
    {"train"},
    {"evaluate"},
    {"integrations"},
    {"cli"},
    {"__main__"},
]
HOME = {  # heavy third-party packages, and the only parts that may name them
    "lightning_fabric": {"train"},
    "lightning": set(),
    "matplotlib": {"evaluate"},
    "jinja2": {"evaluate"},
    "sklearn": {"tasks", "app", "evaluate", "integrations"},
    "lancedb": {"library"},
    "ray": {"integrations"},
    "fsspec": {"integrations"},
    "onnxruntime": {"graph", "devices"},
    "starlette": {"app"},
    "uvicorn": {"app"},
    "umap": {"app"},
    "torch": {
        "tasks",
        "levels",
        "nn",
        "augment",
        "checkpoint",
        "train",
        "evaluate",
        "integrations",
    },
}
# `load` falls back on torch: a model folder without a graph, or another device than the CPU.
UPWARDS = {("embed", "checkpoint")}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imports():
    """Yield (importing part, imported dotted name, whether it is not executed at load time) for every import statement."""
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        apart = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
        inside = {id(node) for part_of in apart for node in ast.walk(part_of)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: write absolute imports"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from ((part, name, id(node) in inside) for name in names)


def test_every_part_has_a_layer():
    parts = {path.stem if path.is_file() else path.name for path in ROOT.iterdir()}
    assert parts - {"__init__", "__pycache__", "py", "recipes"} == set(LEVEL)


def test_imports_point_down():
    for part, name, _ in imports():
        if name.startswith("patchifier.") and part != "__init__":
            target = name.split(".")[1]
            if target in LEVEL:
                down = target == part or LEVEL[target] < LEVEL[part]
                assert down or (part, target) in UPWARDS, f"{part} -> {target}"


def test_heavy_packages_have_a_home():
    for part, name, _ in imports():
        assert part in HOME.get(name.split(".")[0], {part}), f"{part} imports {name}"


def test_what_an_embedding_does_not_need_is_imported_inside_functions():
    for part, name, inside in imports():
        assert inside or name.split(".")[0] not in {"sklearn", "librosa", "matplotlib", "av"}, (
            f"{part} imports {name} at load time"
        )


def test_config_needs_the_standard_library_alone():
    for part, name, _ in imports():
        if part in ("config", "config_names") and not name.startswith("patchifier.config_names."):
            assert name.split(".")[0] in sys.stdlib_module_names, f"{part} imports {name}"


def loaded_after(statement):
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_the_package_does_not_import_torch():
    packages = (
        "[patchifier, patchifier.nn, patchifier.train, patchifier.evaluate, patchifier.library]"
    )
    loaded = loaded_after(f"import patchifier; list(map(dir, {packages}))")
    assert {"patchifier.nn", "patchifier.library"} <= loaded
    assert "torch" not in loaded


def test_a_worker_process_imports_neither_pyarrow_nor_the_command_line():
    loaded = loaded_after("import patchifier.__main__, patchifier.library.worker")
    assert "patchifier.embed" in loaded
    assert not loaded & {"pyarrow", "jsonargparse", "patchifier.cli"}


def test_every_submodule_is_an_attribute_without_a_further_import():
    code = """if True:
        import patchifier, pkgutil, types
        for package in ("", "library", "evaluate", "train", "nn", "integrations", "datasets"):
            package = getattr(patchifier, package) if package else patchifier
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith("_"):
                    assert module.name in dir(package), module.name
                    assert isinstance(getattr(package, module.name), types.ModuleType), module.name
        assert patchifier.search is patchifier.library.search
        assert patchifier.model is patchifier.nn.model
        assert patchifier.library.embed_library is patchifier.library.build.embed_library
        assert not hasattr(patchifier, "collection") and "__main__" not in dir(patchifier)
        assert not hasattr(patchifier, "__main__") and not hasattr(patchifier.nn, "search")
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_submodule_whose_package_is_missing_is_no_attribute_and_its_import_says_what_to_install():
    code = """if True:
        import sys
        import patchifier.integrations
        from patchifier.config import RequestError

        sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
        assert not hasattr(patchifier.integrations, "sklearn")
        try:
            from patchifier.integrations import sklearn
        except RequestError as error:
            assert "pip install 'patchifier[eval]'" in str(error)
        else:
            raise AssertionError("the import was not refused")
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_runtime_works_without_torch():
    code = """if True:
        import sys, importlib, pkgutil
        import numpy as np

        sys.modules["torch"] = None  # its import fails
        import patchifier

        runtime = "io seeding jobs audio excerpts spectrogram windows fingerprint matching graph heads inputs embed cache weights"
        runtime += " estimates predictors integrations.ray integrations.object_store integrations.beets"
        for name in runtime.split():
            importlib.import_module(f"patchifier.{name}")
        for package in ("library", "library.search", "app", "datasets", "cli", "containers"):
            found = importlib.import_module(f"patchifier.{package}")
            for module in pkgutil.iter_modules(found.__path__):
                importlib.import_module(f"patchifier.{package}.{module.name}")
        model = patchifier.load()
        assert np.isfinite(model.embed(np.ones(22_050, np.float32) / 9, 22_050)).all()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_embedding_needs_core_dependencies_alone():
    loaded = loaded_after("import patchifier; patchifier.load().identity")
    assert "onnxruntime" not in loaded  # before the first file
    assert not loaded & {
        "torch",
        "sklearn",
        "librosa",
        "matplotlib",
        "lightning_fabric",
        "av",
        "tensorboard",
    }


def test_no_file_is_too_long_without_a_reason():
    design = (ROOT.parents[1] / "DESIGN.md").read_text(encoding="utf-8")
    for path in ROOT.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert (
            lines <= 400
            or f"`{path.relative_to(ROOT).as_posix()}`"
            in design.split("## Files above 400 lines")[1]
        ), f"{path}: {lines} lines"
