"""Notebooks as pages of the docs: a hook of mkdocs.

Each becomes Markdown with what its cells printed and drew when it was last run, so that formulas, search and the dark page work
as on every other page.
"""

import base64
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent


def on_files(files: Files, config: Any) -> Files:
    """Add a page and its pictures for each notebook."""
    for path in sorted(HERE.glob("*.ipynb")):
        markdown, pictures = page(path)
        for name, content in {f"{path.stem}.md": markdown, **pictures}.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures that it shows by name.

    Args:
        path: a notebook with outputs.

    Raises:
        ValueError: when an output is neither printed text nor a PNG.
    """
    pictures: dict[str, bytes] = {}
    lines = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            lines.append(cell.source)
            continue
        lines.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                lines.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.get("data", {}):
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                lines.append(f"![What the cell above draws]({name})")
            else:
                raise ValueError(
                    f"{path.name}, {cell.id} holds {output.output_type}; a page shows printed text and PNGs."
                )
    first, *rest = lines
    where = f"*This page is `notebooks/{path.name}` as it was last run; open it in Jupyter to run it yourself.*"
    return "\n\n".join([first, where, *rest]) + "\n", pictures
