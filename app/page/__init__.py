"""The web page at `/`: built files, and the scans of `examples/` for who has none at hand.

Knows nothing of completions: the page speaks to the API as every other client does.
Its sources are in `src/`; `npm ci && npm run build` beside them makes `static/` anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

HERE = Path(__file__).parent
STATIC = HERE / "static"
EXAMPLES = HERE.parents[1] / "examples"

router = APIRouter(include_in_schema=False)


def install(app: FastAPI) -> None:
    """Serve the page at `/` and what it needs below `/page`."""
    app.include_router(router)
    app.mount("/page", StaticFiles(directory=STATIC))


@router.api_route("/", methods=["GET", "HEAD"])
def index() -> FileResponse:
    """The page; `no-cache` lets a browser keep it, but ask each time whether it is still the same."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


@router.get("/page/examples")
def examples() -> dict[str, list[dict[str, Any]]]:
    """The scans to try, and which files belong to each; none where the folder was not installed."""
    described = [(file.stem, json.loads(file.read_text())) for file in sorted(EXAMPLES.glob("*.json"))]
    kept = ("scan", "mask", "author", "licence")
    return {
        "examples": [
            {"name": name, **{key: told[key] for key in kept if key in told}}
            for name, told in described
            if "scan" in told
        ]
    }


@router.get("/page/examples/{name}")
def example(name: str) -> FileResponse:
    """One file of an example. The name is looked up, never joined to a path."""
    files = {file.name: file for file in EXAMPLES.glob("*") if file.suffix in (".ply", ".png", ".json")}
    if name not in files:
        raise HTTPException(404)
    return FileResponse(files[name])
