"""A real browser on the real service. Where there is no Chromium, the tests are skipped and say so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from processes import Service, eventually, free_port
from windows import Visit

from app.keys import digest
from app.main import create_app
from app.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium, which draws WebGL in software."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; on Debian: apt-get install chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()


def visit(browser: Browser, url: str, **how: Any) -> Iterator[Visit]:
    """A fresh window, without a history, whose page must behave until the end."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **how})
    context.set_default_timeout(60_000)  # a busy machine is no mistake of the page
    made = Visit(context.new_page(), url)
    made.page.on("console", made.heard)
    made.page.on("pageerror", lambda error: made.console.append(str(error)))
    made.page.on(
        "request",
        lambda asked: asked.url.startswith((url, "data:", "blob:")) or made.abroad.append(asked.url),
    )
    yield made
    context.close()
    assert not made.abroad, "the page asked another server"


@pytest.fixture
def window(browser: Browser, service: Service) -> Iterator[Visit]:
    """A desktop's window on the running service."""
    service.ready()
    yield from visit(browser, str(service.client.http.base_url))


@pytest.fixture
def phone(browser: Browser, service: Service) -> Iterator[Visit]:
    """A phone at night."""
    service.ready()
    how = {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "has_touch": True,
        "is_mobile": True,
    }
    yield from visit(browser, str(service.client.http.base_url), **how)


@pytest.fixture
def guarded(browser: Browser, settings: Settings) -> Iterator[Visit]:
    """A window on an API that wants a key, "open-sesame"; it has a real queue and no worker."""
    locked = settings.model_copy(update={"api_keys": {"anna": digest("open-sesame")}})
    config = uvicorn.Config(create_app(locked), port=free_port(), log_level="warning")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield from visit(browser, f"http://127.0.0.1:{config.port}")
    server.should_exit = True
    thread.join()
