"""Pictures of the page for the docs: `python examples/screenshots.py`, or with --url on a running service.

Writes docs/images/page-*.webp. Needs the extra `dev` and a Chromium, which draws without a screen or GPU.
"""

from __future__ import annotations

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from demo import HERE, service
from PIL import Image
from playwright.sync_api import Page, sync_playwright

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WINDOWS = {
    "light": {"viewport": {"width": 1280, "height": 720}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 720}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "color_scheme": "light"},
}


def main() -> None:
    """One completion, watched in the first window and opened again in the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running service; unless given, one is started and stopped")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with service(given.url) as url, sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        history = None
        for name, window in WINDOWS.items():
            context = browser.new_context(storage_state=history, **window)
            page = context.new_page()
            page.set_default_timeout(400_000)  # a busy machine takes its time
            page.goto(url)
            if history is None:
                complete(page, given.out, name)
            else:
                page.get_by_role("button", name="chair.ply succeeded").click()
            result(page, given.out, name)
            history = context.storage_state()
            context.close()
        browser.close()


def complete(page: Page, out: Path, name: str) -> None:
    """The example chair, from the empty page to what is found while it is fitted."""
    page.get_by_role("button", name="Chair, points").click()
    page.get_by_text("18,000 points", exact=True).wait_for()
    page.get_by_label("Alternatives").select_option("2")
    page.get_by_role("button", name="Complete it").click()
    page.locator(".curve").wait_for()
    page.get_by_role("button", name="Mesh", exact=True).wait_for()  # a coarse one
    shoot(page, out, f"page-{name}-fit")


def result(page: Page, out: Path, name: str) -> None:
    """The mesh with the scan, and how sure it is."""
    page.get_by_role("button", name="Download GLB").wait_for()
    page.get_by_role("button", name="Uncertainty").wait_for()
    page.get_by_role("button", name="Scan", exact=True).wait_for()
    shoot(page, out, f"page-{name}-mesh")
    page.get_by_role("button", name="Scan", exact=True).click()
    page.get_by_role("button", name="Uncertainty").click()
    shoot(page, out, f"page-{name}-uncertainty")


def shoot(page: Page, out: Path, name: str) -> None:
    """A picture of the window, once it has come to rest."""
    page.mouse.move(5, 5)
    page.wait_for_timeout(500)
    page.evaluate("scrollTo(0, 0)")
    Image.open(BytesIO(page.screenshot())).save(out / f"{name}.webp", quality=88, method=6)
    print(out / f"{name}.webp")


if __name__ == "__main__":
    main()
