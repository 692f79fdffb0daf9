"""The site: Sphinx reads docs/*.md and the docstrings. ``make docs`` builds it in dist/docs."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "src"))

from sphinx.application import Sphinx  # noqa: E402

import patchifier  # noqa: E402

project = "Patchifier"
author = "the authors of Patchifier"
copyright = "the authors of Patchifier; Apache-2.0"
release = version = patchifier.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
nb_execution_mode = "off"
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
# A notebook is read as it was executed ('make notebooks'), else from its source.
_NOTEBOOKS = list(DOCS.glob("notebooks/*.py"))
exclude_patterns = [
    "conf.py",
    "search.md",
    "onednn_bf16_convolution.py",
    "made/*.md",  # parts of other pages
    "**/.ipynb_checkpoints",
    *(f"notebooks/{path.name}" for path in _NOTEBOOKS if path.with_suffix(".ipynb").exists()),
]

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
suppress_warnings = [
    "ref.python",  # several classes have a type of one name, such as Head, in their signature
]
highlight_language = "none"
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_param = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "pydata_sphinx_theme"
html_title = "Patchifier"
html_static_path = ["_static"]
html_extra_path = ["made/root"]  # sounds
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "Patchifier"},
    "show_prev_next": True,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "article_header_start": ["breadcrumbs"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Pages of the site that are files elsewhere in the repository.
ELSEWHERE = {
    "guides/neighbours": "docs/search.md",  # search.html is Sphinx's own page
    "project/changelog": "CHANGELOG.md",
    "project/contributing": "CONTRIBUTING.md",
    "project/design": "DESIGN.md",
    "project/security": "SECURITY.md",
    "results/open-benchmark": "benchmarks/open/README.md",
    "results/outsiders": "benchmarks/outsiders/README.md",
    "results/patchifier-base": "src/patchifier/weights/patchifier-base/README.md",
    "results/patchifier-paper": "src/patchifier/weights/patchifier-paper/README.md",
}
_PAGES = {(ROOT / path).resolve(): DOCS / f"{name}.md" for name, path in ELSEWHERE.items()}
_PAGES[ROOT / "README.md"] = DOCS / "index.md"
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```|^:::\w*\{.*?\}$)", re.MULTILINE | re.DOTALL)


def site_links(text: str, file: Path, page: Path) -> str:
    """Rewrite links of a Markdown file to files outside docs, which are no pages of the site.

    A file that is shown as a page of the site is linked there. Another one is named, not linked.

    Parameters
    ----------
    text : str
        Markdown.
    file : Path
        Where it lies: links are relative to it.
    page : Path
        Where its page lies in docs.
    """

    def replace(found: re.Match[str]) -> str:
        words, link, anchor = found[1], found[2], found[3] or ""
        if "://" in link or link.startswith("mailto:"):
            return found[0]
        target = (file.parent / link).resolve()
        target = _PAGES.get(target, target)
        if target.is_relative_to(DOCS) and target.suffix in (".md", ".ipynb"):
            return f"[{words}]({Path(os.path.relpath(target, page.parent)).as_posix()}{anchor})"
        name = str(target.relative_to(ROOT))
        return words if Path(link).name in words else f"{words} (`{name}`)"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


_MADE = re.compile(r"<!-- (made/\w+\.md)( first| rest)? -->")


def _part(found: re.Match[str]) -> str:
    """Text that 'make figures' has made, or its first paragraph, or the others."""
    text = (DOCS / found[1]).read_text(encoding="utf-8")
    first, _, rest = text.partition("\n\n")
    return {None: text, " first": first, " rest": rest}[found[2]]


def _gaps() -> str:
    """Table of the paper's gaps in DESIGN.md."""
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8")
    return re.search(r"^\| gap \|.*?(?=^\n|\Z)", text, re.MULTILINE | re.DOTALL)[0]


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a page by the file elsewhere that it stands for, and fill in what is made."""
    page = DOCS / f"{docname}.md"
    if not page.exists():
        return  # a notebook
    text, file = source[0], page
    if docname in ELSEWHERE:
        file = ROOT / ELSEWHERE[docname]
        text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = _MADE.sub(_part, site_links(text, file, page))
    if "<!-- gaps of DESIGN.md -->" in text:
        gaps = site_links(_gaps(), ROOT / "DESIGN.md", page)
        text = text.replace("<!-- gaps of DESIGN.md -->", gaps)
    if docname == "experiments/README":
        text += "\n```{toctree}\n:hidden:\n:glob:\n\n[0-9]*\n```\n"
    if docname == "guides/index" and not _NOTEBOOKS:
        text = text.partition("Notebooks,")[0]
    source[0] = text


def setup(app: Sphinx) -> None:
    """Rewrite pages when they are read."""
    app.connect("source-read", _read)
