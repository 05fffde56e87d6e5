"""A rater at work in a real browser: keyboard and mouse, closing in the middle, exporting; the tally knows it all."""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import study
from tasks.study_page import embedded, rating_page
from tasks.study_plan import Comparison
from tasks.study_server import make_server
from tasks.tally import tally
from tests.tasks.factory import Project, make_project
from tests.tasks.study_answers import read_csv

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of ten comparisons and two repeats: 12 rows of videos of a quarter second."""
    settings = {"raters": 2, "pairs_per_method": 10, "repeats": 2, "seed": 0}
    made: Project = make_project(tmp_path_factory.mktemp("page"), cross=10, frames=6, study=settings)
    study.run(made.params, made.paths, "f")
    return made.paths.study


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        yield running


Opener = Callable[..., Any]
DESK = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def running(playwright: Any) -> Iterator[Any]:
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield opened
    opened.close()


@pytest.fixture
def browser(running: Any) -> Iterator[Opener]:
    """Opens a window with a profile of its own."""
    opened = []

    def launch(**options: Any) -> Any:
        opened.append(running.new_context(**{"viewport": DESK, **options}))
        return opened[-1]

    yield launch
    for context in opened:
        context.close()


def person(playwright: Any, profile: Path) -> Any:
    """A browser whose profile lies on disk and outlives it, as a real person's does."""
    return playwright.chromium.launch_persistent_context(
        str(profile), executable_path=CHROMIUM, args=FLAGS, viewport=DESK
    )


def open_page(context: Any, address: str, new: bool = False) -> tuple[Any, list[str]]:
    """The page, and what it says or asks for that it should not."""
    page = context.pages[0] if context.pages and not new else context.new_page()
    page.set_default_timeout(15_000)
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    root = address.rsplit("/", 1)[0]
    page.on("request", lambda request: trouble.extend([] if request.url.startswith((root, "blob:")) else [request.url]))
    page.goto(address)
    return page, trouble


def place(page: Any) -> int:
    """Number of the pair that is shown, from 0."""
    return int(page.locator("#count").inner_text().split()[1]) - 1


def rate(page: Any, choice: str, by: str) -> None:
    """Watch the pair that is shown, choose, and go on."""
    from playwright.sync_api import expect

    button = page.locator(f".choose [data-value={choice}]")
    expect(button).to_be_enabled()
    expect(page.locator(".choose [aria-pressed=true]")).to_have_count(0)  # nothing is chosen beforehand
    expect(page.locator("#next")).to_be_disabled()
    if by == "keys":
        page.keyboard.press(choice)
    else:
        button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    if by == "mouse":
        page.locator("#next").click()
    else:
        page.keyboard.press("Enter")


def export(page: Any, target: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename == target.name
    download.value.save_as(target)
    return target


def test_twelve_pairs_with_a_break_are_what_the_tally_counts(folder: Path, playwright: Any, tmp_path: Path) -> None:
    rows = read_csv(folder / "rater_01.csv")
    assert len(rows) == 12
    clicked = random.Random(5).choices("ab", k=12)
    address = (folder / "rater_01.html").as_uri()
    first = person(playwright, tmp_path / "profile")
    page, trouble = open_page(first, address)
    page.locator("#begin").click()
    for number in range(6):
        assert place(page) == number
        rate(page, clicked[number], "keys" if number % 2 else "mouse")
    page.keyboard.press("Backspace")  # back, and another answer
    assert place(page) == 5
    clicked[5] = "b" if clicked[5] == "a" else "a"
    page.keyboard.press(clicked[5])
    page.locator("summary").click()
    page.locator("[data-field=realism] [data-value=b]").click()
    page.locator("#comment").fill('=1+1; "quoted", schön')
    page.keyboard.press("a")  # typed, not chosen
    assert page.locator("#comment").input_value().endswith("schöna")
    page.locator("#next").click()
    assert place(page) == 6
    first.close()  # the window is closed in the middle

    second = person(playwright, tmp_path / "profile")
    page, more = open_page(second, address)
    assert page.locator("#resume").inner_text().startswith("6 of 12 pairs")
    page.locator("#begin").click()
    for number in range(6, 12):
        assert place(page) == number
        rate(page, clicked[number], ("mouse, then Enter", "keys", "mouse")[number % 3])
    assert page.locator("#summary").inner_text() == "12 of 12 pairs are answered. Thank you!"
    assert page.locator("#send").is_hidden()
    sheet = export(page, tmp_path / "rater_01.csv")
    second.close()
    assert trouble == more == []

    found = read_csv(sheet)
    assert [row["choice"] for row in found] == clicked
    assert [{**row, **dict.fromkeys(("choice", "seconds", "realism", "comment"), "")} for row in found] == rows
    assert all(0.2 < float(row["seconds"]) < 60 for row in found)
    assert (found[5]["realism"], found[5]["comment"]) == ("b", '\'=1+1; "quoted", schöna')
    assert sheet.read_bytes().startswith(b"\xef\xbb\xbfpair,")
    assert b"\r\n" in sheet.read_bytes()
    table = tally([sheet], folder / "key.csv")
    key = {row["pair"]: row for row in read_csv(folder / "key.csv")}
    wanted = 0
    for row, choice in zip(rows, clicked, strict=True):
        known = key[row["pair"]]
        side = "a" if known["video_a"] == row[f"video_{choice}"] else "b"
        wanted += known[f"method_{side}"] == "head3d" and not known["repeat_of"]
    assert table.dropped == []
    assert (table.rows[0]["answers"], table.rows[0]["preferred"]) == (10, wanted)
    assert (table.repeats, table.answers_a) == (2, clicked.count("a"))


def times(page: Any) -> list[float]:
    found: list[float] = page.evaluate("['a', 'b', 'driving'].map((id) => document.getElementById(id).currentTime)")
    return found


def test_keys_move_all_videos_together(folder: Path, browser: Opener) -> None:
    from playwright.sync_api import expect

    page, trouble = open_page(browser(), (folder / "rater_01.html").as_uri())
    page.keyboard.press("a")  # nothing is rated on the first screen
    page.locator("#begin").click()
    expect(page.locator(".choose button").first).to_be_enabled()  # has played to the end, and plays on in a loop
    for key, said in (("s", "Speed 0.5×"), ("s", "Speed 0.25×"), ("s", "Speed 1×"), ("s", "Speed 0.5×")):
        page.keyboard.press(key)
        assert page.locator("#speed").inner_text() == said
    assert page.evaluate("[...document.querySelectorAll('video')].map((v) => v.playbackRate)") == [0.5] * 4
    apart = []
    for _ in range(8):
        page.wait_for_timeout(60)
        a, b, driving = times(page)
        apart.append(max(abs(a - b), abs(a - driving)))
    assert sorted(apart)[len(apart) // 2] < 0.08  # two frames; the median, for at the loop's end one jumps first
    page.keyboard.press(" ")
    assert page.locator("#play").inner_text() == "Play"
    stopped = times(page)
    page.wait_for_timeout(120)
    assert times(page) == stopped
    assert max(stopped) - min(stopped) < 0.06
    page.keyboard.press("l")
    assert page.locator("#loop").inner_text() == "Loop off"
    page.keyboard.press("r")
    expect(page.locator("#play")).to_have_text("Play")  # once to the end, then it stands still
    assert page.evaluate("document.getElementById('a').ended")
    page.keyboard.press("ArrowRight")  # nothing was chosen: no way on
    assert place(page) == 0
    page.locator(".choose [data-value=a]").click()
    page.keyboard.press(" ")  # the button still has the focus: space plays all the same
    expect(page.locator("#play")).to_have_text("Pause")
    expect(page.locator(".choose [data-value=a]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("B")
    page.keyboard.press("ArrowRight")
    assert place(page) == 1
    page.keyboard.press("ArrowLeft")
    assert place(page) == 0
    expect(page.locator(".choose [data-value=b]")).to_have_attribute("aria-pressed", "true")
    assert trouble == []


def test_it_can_be_used_without_a_mouse_and_is_calm_where_asked(folder: Path, browser: Opener) -> None:
    from playwright.sync_api import expect

    page, trouble = open_page(browser(reduced_motion="reduce"), (folder / "rater_02.html").as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "begin"
    page.keyboard.press("Enter")
    expect(page.locator("#play")).to_have_text("Play")  # nothing moves by itself
    page.wait_for_timeout(150)
    assert times(page) == [0, 0, 0]
    page.keyboard.press(" ")
    expect(page.locator(".choose button").first).to_be_enabled()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.value") == "b":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press(" ")  # on a button that was reached by Tab, space presses the button
    expect(page.locator(".choose [data-value=b]")).to_have_attribute("aria-pressed", "true")
    names = page.evaluate(
        "[...document.querySelectorAll('button, textarea, video, progress')].filter((e) => !e.closest('[hidden]'))"
        ".map((e) => e.ariaLabel || e.textContent || (e.labels && e.labels[0] && e.labels[0].textContent) || '')"
    )
    assert all(name.strip() for name in names)
    assert trouble == []


def contrast(page: Any) -> float:
    """The lowest contrast of a text that is shown with what lies behind it (WCAG 2)."""
    value: float = page.evaluate(
        """() => {
        const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((v) => v / 255).map(
            (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
        const texts = 'p, h1, h2, h3, button, dd, dt, kbd, summary, figcaption, span, label';
        const shown = [...document.querySelectorAll(texts)].filter((e) => e.offsetParent && e.innerText.trim());
        return Math.min(...shown.map((e) => { const [x, y] = [light(getComputedStyle(e).color), light(behind(e))];
            return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05); })); }"""
    )
    return value


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off_or_too_small(folder: Path, browser: Opener, scheme: str) -> None:
    from playwright.sync_api import expect

    context = browser(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    page, trouble = open_page(context, (folder / "rater_01.html").as_uri())
    assert contrast(page) > 4.5
    page.locator("#begin").tap()
    expect(page.locator(".choose button").first).to_be_enabled()
    page.locator(".choose [data-value=a]").tap()
    page.locator("summary").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert contrast(page) > 4.5
    shown = "[...document.querySelectorAll('button')].filter((e) => e.offsetParent)"
    sizes = page.evaluate(f"{shown}.map((e) => e.getBoundingClientRect().height)")
    assert min(sizes) >= 44
    page.locator("#next").tap()
    assert place(page) == 1
    page.locator("#pause-study").tap()
    assert contrast(page) > 4.5
    assert trouble == []


def test_raters_who_share_a_browser_do_not_share_answers(folder: Path, browser: Opener) -> None:
    context = browser()
    page, _ = open_page(context, (folder / "rater_01.html").as_uri())
    page.locator("#begin").click()
    rate(page, "a", "keys")
    page.goto((folder / "rater_02.html").as_uri())
    assert page.locator("#resume").is_hidden()
    page.goto((folder / "rater_01.html").as_uri())
    assert page.locator("#resume").inner_text().startswith("1 of 12")
    page.locator("#begin").click()
    second, _ = open_page(context, (folder / "rater_01.html").as_uri(), new=True)
    second.locator("#begin").click()
    rate(second, "b", "keys")
    page.get_by_text("Use one tab only.").wait_for()
    assert page.locator("#resume").inner_text().startswith("2 of 12")
    second.close()
    page.goto((folder / "rater_02.html").as_uri())
    page.evaluate(
        "localStorage.setItem(Object.keys(localStorage).find((k) => k.endsWith('rater_01')), '{\"answers\": 5')"
    )
    page.goto((folder / "rater_01.html").as_uri())
    assert page.locator("#begin").inner_text() == "Begin"  # damaged: begun anew, not stuck


def test_a_video_that_does_not_play_is_said_and_can_be_skipped(folder: Path, browser: Opener, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    alone = rating_page(
        "rater_01", "0", [Comparison("p0001", "d", "0.mp4", "1.mp4", "2.mp4", "3.mp4", "", "", "")], None
    )
    (tmp_path / "rater_01.html").write_text(alone, encoding="utf-8")  # without the folder of videos
    page, _ = open_page(browser(), (tmp_path / "rater_01.html").as_uri())
    page.locator("#begin").click()
    expect(page.locator("#notice")).to_contain_text("Unpack the whole folder")
    page.locator("#next").click()
    assert page.locator("#summary").inner_text().startswith("0 of 1 pairs")


def test_large_videos_are_files_beside_the_page(folder: Path, browser: Opener, tmp_path: Path) -> None:
    page_alone = folder / "rater_01.html"
    assert embedded(folder / "videos") is not None
    page, trouble = open_page(browser(), page_alone.as_uri())
    page.locator("#begin").click()
    assert page.evaluate("document.getElementById('a').src").startswith("blob:")  # the page can be sent alone
    rows = re.sub(
        r'(<script type="application/json" id="videos">).*?(</script>)', r"\1{}\2", page_alone.read_text("utf-8")
    )
    (tmp_path / "rater_01.html").write_text(rows, encoding="utf-8")
    shutil.copytree(folder / "videos", tmp_path / "videos")
    page, more = open_page(browser(), (tmp_path / "rater_01.html").as_uri())
    page.locator("#begin").click()
    rate(page, "a", "keys")
    assert page.evaluate("document.getElementById('a').src").startswith("file:")
    assert trouble == more == []


def test_the_server_takes_what_the_page_sends(folder: Path, browser: Opener) -> None:
    server = make_server(folder, 0, ["rater_02"])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        page, trouble = open_page(browser(), f"http://127.0.0.1:{server.server_port}/rater_02/")
        page.locator("#begin").click()
        rate(page, "b", "keys")
        rate(page, "a", "mouse")
        page.locator("#pause-study").click()
        page.locator("#send").click()
        page.get_by_text("Thank you: the answers have arrived.").wait_for()
        page.context.close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    rows = read_csv(folder / "returned" / "rater_02.csv")
    assert [row["choice"] for row in rows] == ["b", "a", *[""] * 10]
    assert [item for item in trouble if "favicon" not in item] == []
