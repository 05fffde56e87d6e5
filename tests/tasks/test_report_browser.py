"""The report in a real browser, opened from disk: players, the 3D viewer, a phone, no scripts, no WebGL."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.video import read_frames
from tests.tasks.factory import Project
from tests.tasks.report_project import CHROMIUM, FLAGS, METHODS


@pytest.fixture(scope="module")
def project(report_project: Project) -> Project:
    return report_project


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), float)


@dataclass
class Opened:
    """A page of the report in a browser, and what it said and asked for."""

    page: Any
    url: str
    said: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def opened(project: Project) -> Iterator[Opened]:
    """The report in a browser, from disk, at the width of a phone."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import sync_playwright

    url = (project.paths.report / "index.html").resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            found = Opened(page, url, [], [])
            page.on("console", lambda message: found.said.append(message.text))
            page.on("pageerror", lambda error: found.said.append(str(error)))
            page.on("request", lambda request: found.requests.append(request.url))
            page.goto(url)
            yield found
        finally:
            browser.close()


def test_nothing_is_wider_than_a_phone_and_dark_mode_is_dark(opened: Opened) -> None:
    page = opened.page
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    shades = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(shades[:3]) < 60
    page.emulate_media(color_scheme="light")
    page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(i => i.complete)", timeout=15000)
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")


def test_every_video_plays_and_one_control_drives_all_panels_of_its_row(opened: Opened, project: Project) -> None:
    page = opened.page
    players = page.locator(".player")
    assert players.count() == 4
    for number in range(players.count()):
        players.nth(number).scroll_into_view_if_needed()
        moved = """number => { const v = document.querySelectorAll('.player video')[number];
            return !v.error && v.readyState >= 2 && (v.played.length > 0 && v.played.end(v.played.length - 1) > 0); }"""
        page.wait_for_function(moved, arg=number, timeout=15000)
    player = players.nth(0)
    seek, count = player.locator("input"), player.locator("output")
    player.locator("select").select_option("0.25")
    assert player.locator("video").evaluate("v => v.playbackRate") == 0.25
    seek.evaluate("i => { i.value = 5; i.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.querySelector('.player video').seeking === false", timeout=5000)
    page.wait_for_function("document.querySelector('.player output').textContent === '6 / 8'", timeout=5000)
    clip = read_frames(project.paths.report / player.locator("video").get_attribute("src"))[5].astype(float)
    panels = player.locator("canvas")
    assert panels.count() == 2 + len(METHODS) + 1
    side = int(player.get_attribute("data-width"))
    for index in range(panels.count()):
        row, column = divmod(index, 4)
        part = clip[row * side : (row + 1) * side, column * side : (column + 1) * side]
        shown = pixels(panels.nth(index).screenshot())
        assert np.abs(shown.mean(axis=(0, 1)) - part.mean(axis=(0, 1))).max() < 8, f"panel {index}"
    player.get_by_role("button", name="One frame on").click()
    page.wait_for_function("document.querySelector('.player output').textContent === '7 / 8'", timeout=5000)
    assert count.inner_text() == "7 / 8"


def test_a_head_turns_in_the_one_viewer(opened: Opened) -> None:
    page = opened.page
    buttons = page.locator(".turn")
    assert buttons.count() == 4
    pictures = []
    for number in range(4):
        buttons.nth(number).click()
        page.wait_for_function("document.querySelector('.say').textContent.startsWith('Drag')", timeout=20000)
        pictures.append(page.locator(".stage").screenshot())
    assert page.locator(".stage canvas").count() == 1
    assert len(set(pictures)) > 1, "another head is shown"
    stage = page.locator(".stage canvas")
    stage.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    turned = page.locator(".stage").screenshot()
    page.get_by_label("shape without its picture").check()
    shape = page.locator(".stage").screenshot()
    box = stage.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 100, steps=3)
    page.mouse.up()
    dragged = page.locator(".stage").screenshot()
    page.get_by_role("button", name="From the front").click()
    page.get_by_label("shape without its picture").uncheck()
    front = page.locator(".stage").screenshot()
    images = [
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float)
        for data in (pictures[-1], turned, shape, dragged)
    ]
    for before, after in pairwise(images):
        assert (np.abs(before - after).max(axis=-1) > 25).mean() > 0.01
    assert np.abs(np.asarray(Image.open(io.BytesIO(front)).convert("RGB"), float) - images[0]).mean() < 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as .glb").click()
    assert Path(download.value.path()).read_bytes()[:4] == b"glTF"


def test_nothing_was_said_and_nothing_asked_for_outside_the_folder(opened: Opened, project: Project) -> None:
    assert opened.said == []
    folder = project.paths.report.resolve().as_uri()
    outside = [url for url in opened.requests if not url.startswith((folder, "data:", "blob:null/"))]
    assert outside == []


def test_without_scripts_videos_are_large_and_what_needs_them_is_hidden(opened: Opened) -> None:
    context = opened.page.context.browser.new_context(
        java_script_enabled=False, viewport={"width": 1280, "height": 900}
    )
    try:
        page = context.new_page()
        page.goto(opened.url)
        page.locator("video").first.scroll_into_view_if_needed()
        assert page.locator("video").first.bounding_box()["width"] > 600
        assert page.locator(".turn:visible").count() == 0
        assert page.locator(".viewer:visible").count() == 0
        assert page.locator(".heads img").count() == 4
    finally:
        context.close()


def test_without_webgl_the_pictures_stay_and_nothing_offers_more(opened: Opened) -> None:
    context = opened.page.context.browser.new_context()
    try:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.add_init_script("HTMLCanvasElement.prototype.getContext = (get => function (kind, ...rest) {"
                             "return kind.startsWith('webgl') ? null : get.call(this, kind, ...rest); })"
                             "(HTMLCanvasElement.prototype.getContext)")  # fmt: skip
        page.goto(opened.url)
        assert page.locator(".driven").count() == 4
        assert page.locator(".turn:visible").count() == 0
        assert said == []
    finally:
        context.close()
