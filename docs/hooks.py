"""What mkdocs is told beside mkdocs.yml: the gallery and the reference are part of the site, and formulas become MathML.

MathML is drawn by the browser itself, so a page needs no network.
"""

import html
import logging
import re
from pathlib import Path
from typing import Any

import reference
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

GALLERY = Path(__file__).parents[1] / "figures" / "gallery"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

log = logging.getLogger("mkdocs.hooks.formulas")


def on_config(config: Any) -> Any:
    """List the pages of the reference where mkdocs.yml has `reference/`."""
    for entry in config["nav"]:
        if isinstance(entry, dict) and entry.get("Reference") == "reference/":
            entry["Reference"] = [f"reference/{name}" for name in reference.nav()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference, and the pictures of the gallery, which git keeps once."""
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}", content=text))
    for picture in sorted(GALLERY.glob("*.png")):
        files.append(File.generated(config, f"figures/gallery/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In the repository the gallery is one folder further up than in the site."""
    return markdown.replace("../figures/gallery/", "figures/gallery/")


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Set every formula of a page."""
    return FORMULA.sub(lambda found: mathml(found[2], found[1] == "div", page.file.src_uri), content)


def mathml(escaped: str, block: bool, where: str) -> str:
    """One formula as MathML; one that holds an unknown command is a warning, which fails a strict build."""
    latex = html.unescape(escaped).replace(r"\arg", r"\operatorname{arg}")  # the one operator that the converter lacks
    made = convert(latex, display="block" if block else "inline")
    if "\\" in made:
        log.warning("%s has a formula that cannot be set: %s", where, latex)
    return made
