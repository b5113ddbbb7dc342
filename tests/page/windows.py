"""A visitor's window in a real browser: what one does on the page, and what one sees of it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from processes import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

AXE = ROOT / "app" / "page" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = ROOT / "out" / "page"
"""Where screenshots of the tests are kept, for people to look at."""

SHARP = """() => {
    const canvas = document.querySelector(".canvas canvas");
    return canvas.width >= canvas.clientWidth;
}"""
"""While the view turns slowly it is drawn with fewer pixels."""
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass
class Visit:
    """One visitor's window, and what went wrong in it."""

    page: Page
    url: str
    console: list[str] = field(default_factory=list)
    abroad: list[str] = field(default_factory=list)  # requests that left the service

    def heard(self, told: ConsoleMessage) -> None:
        """Keep what the console calls an error."""
        if told.type == "error":
            self.console.append(f"{told.text} {told.location['url']}")

    def open(self) -> Visit:
        """Go to the page, and wait until its stage stands."""
        self.page.goto(self.url)
        self.page.wait_for_selector(".canvas canvas")
        self.page.locator(".chip").nth(1).wait_for()
        return self

    def drop(self, *files: tuple[str, bytes], at: tuple[int, int] = (0, 0)) -> None:
        """Drop files on the window, as a mouse does."""
        given = [[name, base64.b64encode(data).decode()] for name, data in files]
        transfer = self.page.evaluate_handle(
            """files => { const transfer = new DataTransfer();
               for (const [name, data] of files) {
                 const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
                 transfer.items.add(new File([bytes], name)); }
               return transfer; }""",
            given,
        )
        self.page.dispatch_event(
            "main", "drop", {"dataTransfer": transfer, "clientX": at[0], "clientY": at[1]}
        )

    def pixels(self) -> Any:
        """What the stage shows at rest, (H, W, 4); transparent is where nothing is drawn."""
        self.page.evaluate(TWO_FRAMES)
        self.page.wait_for_function(SHARP)
        url = self.page.eval_on_selector(".canvas canvas", "canvas => canvas.toDataURL('image/png')")
        return np.asarray(Image.open(BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))

    def keep(self, name: str) -> None:
        """Keep a screenshot."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png")

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or worse."""
        if not AXE.exists():
            pytest.skip("axe-core is not installed: npm ci in app/page")
        self.page.evaluate(AXE.read_text())  # not a script tag: the page's policy forbids foreign ones
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [item for item in found if item["impact"] in ("serious", "critical")]
        return [f"{item['id']}: {item['nodes'][0]['html']}" for item in serious]
