"""What the site has beside the files of docs/: pages from elsewhere in the repository, and the API reference.

Links in the documents are those of the repository, so that they work there too. Here they are turned
into those of the site. A link to a file that is not on the site stays as it is, and fails the strict build.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mkdocs.structure.files import File, Files  # noqa: E402
from reference import openapi_document, reference  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "checkpoints/README.md": "checkpoints.md",
    "checkpoints/chairs/report.md": "checkpoints/chairs/report.md",
    "checkpoints/chairs/ATTRIBUTION.md": "checkpoints/chairs/attribution.md",
    "examples/README.md": "examples.md",
    "examples/quickstart.ipynb": "notebook.md",
    "docs/decisions": "decisions/index.md",
}
"""Files of the repository, and the page that each is on the site."""

FILES = {"app/page/src/icon.svg": "images/icon.svg"} | {
    str(file.relative_to(ROOT)): str(file.relative_to(ROOT))
    for file in sorted(ROOT.glob("checkpoints/chairs/report/*.png"))
}
"""Files of the repository that the site holds as they are."""

ORIGINS = {page: origin for origin, page in PAGES.items()}
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name all decisions in the navigation."""
    pages = ["decisions/index.md", *(f"decisions/{file.name}" for file in decisions())]
    for entry in (entry for section in config.nav for entries in section.values() for entry in entries):
        if isinstance(entry, dict) and "Decisions" in entry:
            entry["Decisions"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    document = openapi_document()
    made = {
        "reference.md": reference(document),
        "openapi.json": json.dumps(document, indent=1),
        "decisions/index.md": listed_decisions(),
        "notebook.md": notebook(ROOT / "examples" / "quickstart.ipynb"),
    }
    for origin, page in PAGES.items():
        if page not in made:
            made[page] = (ROOT / origin).read_text()
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    for origin, place in FILES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / origin)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    place = page.file.src_uri
    folder = dirname(ORIGINS.get(place, join("docs", place)))

    def turned(link: re.Match[str]) -> str:
        target = place_on_site(normpath(join(folder, link[2])))
        return link[0] if target is None else f"{link[1]}{relpath(target, dirname(place) or '.')}{link[3]}"

    return LINK.sub(turned, markdown)


def place_on_site(path: str) -> str | None:
    """Where the site has a file of the repository; None: nowhere."""
    if path in PAGES or path in FILES:
        return {**PAGES, **FILES}[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def decisions() -> list[Path]:
    """The files of the decisions, oldest first."""
    return sorted((ROOT / "docs" / "decisions").glob("*.md"))


def listed_decisions() -> str:
    """A page that lists the decisions by their titles."""
    titles = [(file.name, file.read_text().splitlines()[0].lstrip("# ")) for file in decisions()]
    rows = "\n".join(f"- [{title}](decisions/{name})" for name, title in titles)
    return f"# Decisions\n\nWhat someone may want to undo, and why it is as it is.\n\n{rows}\n"


def notebook(path: Path) -> str:
    """A notebook as a page: its words, and its code as blocks."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join([*parts, f"This page is `{os.fspath(path.relative_to(ROOT))}`.", ""])
