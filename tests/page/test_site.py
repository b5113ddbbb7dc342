"""The documentation as a site: built strictly, whole, and without anything from another server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from processes import ROOT

from app.main import create_app


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra `docs` is not installed: make setup")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", place]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr  # of links that lead nowhere, anchors that are not there
    return place


def test_every_document_is_a_page_that_the_navigation_names(site):
    home = (site / "index.html").read_text()
    for file in ROOT.glob("docs/**/*.md"):
        page = str(file.relative_to(ROOT / "docs").with_suffix(".html")).replace("README", "index")
        assert (site / page).exists()
        assert f'href="{page}"' in home or page == "index.html", page


def test_the_reference_has_all_that_the_openapi_document_has(site, settings):
    document = create_app(settings).openapi()
    assert json.loads((site / "openapi.json").read_text()) == document
    sections = re.split(r"<h[23]", (site / "reference.html").read_text())
    of = {found[1]: text for text in sections if (found := re.match(r' id="([^"]+)"', text))}
    for methods in document["paths"].values():
        for operation in methods.values():
            for name in (one["name"] for one in operation.get("parameters", [])):
                assert f"<code>{name}</code>" in of[operation["operationId"]]
            assert all(status in of[operation["operationId"]] for status in operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        if not name.startswith("Body_"):
            fields = schema.get("properties", {})
            assert all(f"<code>{field}</code>" in of[f"schema-{name.lower()}"] for field in fields)


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url(site):
    handler = partial(Silent, directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_site_shows_its_pictures_can_be_searched_and_asks_no_other_server(url, browser):
    page = browser.new_page()
    asked, missing = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda answer: answer.status >= 400 and missing.append(answer.url))
    for name in ("gallery", "quickstart"):
        page.goto(f"{url}/{name}.html")
        shown = page.eval_on_selector_all(
            "img", "all => all.map(one => one.complete && one.naturalWidth > 0)"
        )
        assert shown and all(shown)
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("idempotency")
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url("**/api.html*")
    page.close()
    assert all(one.startswith((url, "data:", "blob:")) for one in asked)
    assert not missing


def test_a_page_can_be_read_from_the_disk(site, browser):
    page = browser.new_page()
    page.goto(f"file://{site}/quickstart.html")
    page.get_by_role("link", name="Questions").first.click()
    page.get_by_role("heading", name="Questions").wait_for()
    page.close()
