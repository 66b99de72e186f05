"""The page at `/` in a real browser: chosen, dropped and pasted images, bad ones, and a key."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headstart.serving.server import KEY_VARIABLE
from tests.serving.conftest import png
from tests.serving.live_server import Server, running_server

KEY = "open-sesame"
# Files as a drop or a paste brings them.
SENT = """async ([kind, files]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    data.items.add(new File([bytes], name, {type}));
  }
  const given = {bubbles: true, cancelable: true};
  document.body.dispatchEvent(kind === "drop"
    ? new DragEvent("drop", {...given, dataTransfer: data})
    : new ClipboardEvent("paste", {...given, clipboardData: data}));
}"""


@pytest.fixture(scope="module")
def server(serving: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key."""
    folder = tmp_path_factory.mktemp("page")
    with running_server(serving, folder, environment={KEY_VARIABLE: KEY}) as server:
        yield server


@contextmanager
def opened(
    browser: Any,
    server: Server,
    *,
    width: int = 1200,
    scheme: str = "light",
    key: str = KEY,
    chosen: Path | None = None,
) -> Iterator[Any]:
    """The page; nothing may be complained of, and nothing asked of another server.

    Args:
        chosen: what somebody chooses, whenever they are asked for files.
    """
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    address = f"http://127.0.0.1:{server.port}/"
    if key:
        page.add_init_script(f"sessionStorage.setItem('key', '{key}')")
    # Before the page is there: the browser must know by the time that it would open a dialog.
    page.on("filechooser", lambda chooser: chooser.set_files(chosen))
    page.goto(address)
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
    # Chromium tells of every answer that is an error.
    assert [one for one in complaints if "Failed to load resource" not in one] == []
    assert [url for url in requests if not url.startswith((address, "blob:"))] == []


def sent(*files: tuple[str, bytes]) -> list[list[str]]:
    """Files as the page's script above takes them."""
    return [[name, "image/png", base64.b64encode(data).decode()] for name, data in files]


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_that_are_dropped_or_pasted_are_answered(
    browser: Any, server: Server, kind: str
) -> None:
    with opened(browser, server) as page:
        page.evaluate(SENT, [kind, sent(("one.png", png(1)), ("two.png", png(2)))])
        page.locator(".card dl").nth(1).wait_for()
        card = page.locator(".card", has_text="one.png")
        found = card.inner_text()
        answer = server.post(png(1), "image/png", headers={"Authorization": f"Bearer {KEY}"})[1]
        probability = float(answer.split(b'"probability": ')[1].split(b",")[0])
        assert f"{100 * probability:.1f} %" in found
        best = card.locator("h2").inner_text()
        assert answer.count(f'"predicted_label": "{best}"'.encode()) == 1
        assert sorted(card.locator("dt").all_inner_texts()) == ["a", "b", "c"]
        assert "Novelty" in found
        assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 0)")


def test_a_file_that_is_no_image_has_its_reason(browser: Any, server: Server) -> None:
    name = "<img src=x onerror=alert(1)>.png"
    with opened(browser, server) as page:
        page.evaluate(SENT, ["drop", sent((name, b"<html>"), ("good.png", png(1)))])
        page.locator(".card.bad").wait_for()
        page.locator(".card dl").wait_for()
        bad = page.locator(".card.bad")
        assert "not an image that can be read" in bad.locator("h2").inner_text()
        assert bad.locator(".name").inner_text() == name
        assert bad.locator(".frame").inner_text() == "no preview"
        assert page.locator(".card").count() == 2
        assert page.locator("[aria-live=polite]").inner_text() != ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_used_by_keyboard_on_a_phone(
    browser: Any, server: Server, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "chosen.png").write_bytes(png(3))
    chosen = tmp_path / "chosen.png"
    with opened(browser, server, width=390, scheme=scheme, chosen=chosen) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "choose"
        page.keyboard.press("Enter")
        page.locator(".card dl").wait_for()
        image = page.locator(".card img")
        own = image.get_attribute("src")
        page.keyboard.press("Tab")  # Clear
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.locator("button[aria-pressed=true]").wait_for()
        assert image.get_attribute("src") != own
        assert page.evaluate(
            "document.images[0].decode().then(() => document.images[0].naturalWidth)"
        )
        assert page.evaluate("document.activeElement.textContent") == "Show the image"
        page.keyboard.press("Space")
        assert image.get_attribute("src") == own
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 28)"
        assert dark == (scheme == "dark")
        page.locator("#clear").click()
        assert page.locator(".card").count() == 0


def test_the_key_is_asked_for_once_and_again_when_it_is_wrong(browser: Any, server: Server) -> None:
    with opened(browser, server, key="") as page:
        assert not page.locator("#key").is_visible()
        page.evaluate(SENT, ["drop", sent(*[(f"{n}.png", png(n)) for n in range(4)])])
        page.locator("#key").wait_for()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("does not take this key").wait_for()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        page.locator(".card dl").nth(3).wait_for()
        assert page.locator(".card dl").count() == 4
        assert not page.locator("#key").is_visible()
