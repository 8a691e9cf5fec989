"""The page to draw on, in a browser without network."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers import bars_model, open_context
from tests.serving import BAR, Server, png, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Points = list[tuple[float, float]]  # in the drawing area, x and y in [0, 1]
Open = Callable[..., "Page"]
ACROSS: Points = [(0.1, 0.5), (0.5, 0.5), (0.9, 0.5)]
DOWN: Points = [(0.5, 0.1), (0.5, 0.5), (0.5, 0.9)]


@pytest.fixture(scope="module")
def server(browser: "Browser", bars_file: Path) -> Iterator[Server]:
    """Start after the browser, whose absence skips the tests."""
    with serving(bars_file) as server:
        yield server


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Open pages that must log no errors and load nothing from other hosts."""
    contexts, errors, requested = [], [], set[str]()

    def note(text: str) -> None:
        if "status of 503" not in text and "status of 422" not in text:  # logged by Chromium itself
            errors.append(text)

    def start(server: Server, **options: Any) -> "Page":  # noqa: ANN401
        context = open_context(browser, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: note(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requested.add(request.url))
        page.goto(server.address)
        page.locator("#bars li").first.wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    foreign = [url for url in requested if not re.match(r"http://127\.0\.0\.1:|data:|blob:", url)]
    assert (errors, foreign) == ([], [])


def draw(page: "Page", points: Points) -> None:
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def expect(page: "Page", name: str) -> None:
    """Wait for a prediction."""
    page.locator("#label", has_text=re.compile(f"^{re.escape(name)}$")).wait_for()


def test_drawing_is_classified_and_model_input_shown(server: Server, open_page: Open) -> None:
    page = open_page(server)
    draw(page, ACROSS)
    expect(page, "horizontal")
    assert page.locator("#seen").evaluate("image => image.naturalWidth") == 14
    page.locator("#status", has_text="horizontal, 99.").wait_for(state="attached")
    assert page.locator("#bars .first .name").inner_text() == "horizontal"
    page.keyboard.press("Escape")
    expect(page, "?")
    draw(page, DOWN)
    expect(page, "vertical")


def test_touch_draws_without_scrolling(server: Server, open_page: Open) -> None:
    page = open_page(server, has_touch=True, viewport={"width": 320, "height": 600})
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        touched = [
            {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in points
        ]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touched})

    touch("touchStart", DOWN[0])
    for i in range(1, 9):
        touch("touchMove", (0.5, 0.1 + 0.1 * i))
    touch("touchEnd")
    expect(page, "vertical")
    assert page.evaluate("scrollY") == 0


def test_prediction_updates_while_drawing(server: Server, open_page: Open) -> None:
    page = open_page(server)
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 40, box["y"] + 40, steps=5)
    expect(page, "horizontal")
    page.mouse.up()


def test_undo_removes_the_last_line(server: Server, open_page: Open) -> None:
    page = open_page(server)
    assert page.locator("#undo").is_disabled()
    draw(page, ACROSS)
    expect(page, "horizontal")
    for x in (0.2, 0.4, 0.6, 0.8):
        draw(page, [(x, 0.02), (x, 0.98)])
    expect(page, "vertical")
    for _ in range(4):
        page.keyboard.press("Control+z")
    expect(page, "horizontal")
    page.locator("#undo").click()
    expect(page, "?")


def test_images_can_be_chosen_by_keyboard(server: Server, open_page: Open, tmp_path: Path) -> None:
    page = open_page(server)
    (tmp_path / "bar.png").write_bytes(png(BAR.T))
    page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "bar.png"))
    page.keyboard.press("Tab")  # the link to the API
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.keyboard.press("Enter")
    expect(page, "vertical")
    assert page.locator("#photo").is_visible()


def drop(page: "Page", names: dict[str, bytes]) -> None:
    """Drop files anywhere on the page."""
    content = {name: list(content) for name, content in names.items()}
    page.evaluate(
        """content => {
            const transfer = new DataTransfer();
            for (const [name, bytes] of Object.entries(content))
                transfer.items.add(new File([new Uint8Array(bytes)], name));
            const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent("drop", options));
        }""",
        content,
    )


def test_dropped_images_are_listed_with_their_classes(server: Server, open_page: Open) -> None:
    page = open_page(server)
    drop(page, {"a.png": png(), "<b>.png": png(BAR.T), "c.txt": b"no image"})
    expect(page, "horizontal")
    results = page.locator("#results button")
    assert results.all_inner_texts() == ["horizontal", "vertical", "not an image"]
    results.nth(1).click()
    expect(page, "vertical")
    assert results.nth(1).get_attribute("aria-label") == "<b>.png: vertical"
    results.nth(2).click()
    page.get_by_role("alert").filter(has_text="c.txt: ").wait_for()


def test_a_pasted_image_is_classified(server: Server, open_page: Open) -> None:
    page = open_page(server)
    page.evaluate(
        """bytes => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "pasted.png"));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
        }""",
        list(png()),
    )
    expect(page, "horizontal")


@pytest.mark.parametrize("colors", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_page_fits_any_width_in_light_and_dark(
    server: Server, open_page: Open, colors: str, width: int
) -> None:
    page = open_page(server, color_scheme=colors, viewport={"width": width, "height": 700})
    draw(page, ACROSS)
    expect(page, "horizontal")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 200) == (colors == "dark")
    page.goto(f"{server.address}/docs")
    page.get_by_role("heading", name="POST /classify").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_many_long_class_names_fit_a_phone(open_page: Open, tmp_path: Path) -> None:
    names = [f"<b>{i}</b> " + "Donaudampfschifffahrtsgesellschaft" * 3 for i in range(256)]
    (tmp_path / "model.onnx").write_bytes(bars_model(names, title="W" * 200))
    with serving(tmp_path / "model.onnx") as server:
        page = open_page(server, viewport={"width": 320, "height": 700})
        draw(page, DOWN)
        expect(page, names[1])
        rows = page.locator("#bars li")
        assert rows.count() == 10
        assert rows.first.locator(".name").inner_text() == names[1]
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        page.context.close()  # before the server ends, as the page may still send


def test_a_color_model_takes_files_only(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(bars_model(color=True))
    with serving(tmp_path / "model.onnx") as server:
        page = open_page(server)
        assert page.locator("#canvas").is_hidden()
        assert page.locator("#hint").inner_text() == "or drop, paste or choose images"
        drop(page, {"a.png": png()})
        expect(page, "horizontal")
        page.context.close()


def test_busy_server_and_new_model_are_displayed(open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bars_model())
    with serving(path) as server:
        page = open_page(server)
        page.route("**/classify*", lambda route: route.fulfill(status=503, json={"detail": ""}))
        draw(page, ACROSS)
        page.get_by_role("alert").filter(has_text="busy").wait_for()
        page.unroute("**/classify*")
        expect(page, "horizontal")
        path.with_suffix(".new").write_bytes(bars_model(["across", "down"], title="New"))
        path.with_suffix(".new").replace(path)
        draw(page, ACROSS)
        expect(page, "across")
        page.locator("h1", has_text="New").wait_for()
        page.context.close()


def test_server_shutdown_is_displayed(browser: "Browser", bars_file: Path) -> None:
    page = open_context(browser).new_page()
    with serving(bars_file) as server:
        page.goto(server.address)
        draw(page, ACROSS)
        expect(page, "horizontal")
    draw(page, DOWN)
    page.get_by_role("alert").filter(has_text="The server does not answer").wait_for()
    page.context.close()


def test_elements_have_names_and_the_focus_is_visible(server: Server, open_page: Open) -> None:
    page = open_page(server)
    draw(page, ACROSS)
    expect(page, "horizontal")
    page.locator("header a").focus()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, a, img, canvas")].filter(
            e => !(e.innerText || e.labels?.[0]?.innerText || e.getAttribute("aria-label")
                || e.hasAttribute("alt"))).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    for _ in ("files", "undo", "clear"):
        page.keyboard.press("Tab")
        outline = page.evaluate(
            """() => [document.activeElement, document.activeElement.parentElement].some(
                e => getComputedStyle(e).outlineStyle === "solid")"""
        )
        assert outline
