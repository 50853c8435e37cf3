"""The page in headless Chromium: opened, searched, clicked; it asks nobody for anything and says nothing of errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_run import HOSTILE, NUM_ITEMS, original_group, trained_group
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from beeray.config import Config
from beeray.verbs.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver here")]

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900")


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(run: Config) -> Path:
    return write_report(run)


@pytest.fixture
def opened(browser: webdriver.Chrome, report: Path) -> webdriver.Chrome:
    browser.get_log("browser")
    browser.get_log("performance")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(report.as_uri())
    return browser


def requested(browser: webdriver.Chrome) -> list[str]:
    """Addresses of all requests since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


def selected(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "selected").text


def listed(browser: webdriver.Chrome, name: str) -> list[int]:
    buttons = browser.find_elements(By.CSS_SELECTOR, f"#list-{name} button")
    return [int(button.get_attribute("data-item") or -1) for button in buttons]


def search(browser: webdriver.Chrome, *keys: str) -> None:
    field = browser.find_element(By.ID, "search")
    field.clear()
    field.send_keys(*keys)


def test_the_page_opens_without_errors_or_requests_and_draws_every_plot(opened: webdriver.Chrome, report: Path) -> None:
    assert opened.get_log("browser") == []
    assert requested(opened) == [report.as_uri()]
    drawn = opened.execute_script("return [...document.querySelectorAll('.js-plotly-plot .plot-container')].length")
    assert drawn == 2 + 3 + 4 + 1  # metrics; coverage, Gini, popularity; loss, validation, lr, tokens; the map
    assert opened.execute_script("return document.querySelectorAll('#map-plot .points path').length") >= NUM_ITEMS


def test_a_hostile_text_is_shown_as_it_is_and_does_nothing(opened: webdriver.Chrome) -> None:
    search(opened, "id-0", Keys.ENTER)
    assert HOSTILE.replace("\u2028", "").split()[0] in selected(opened)
    assert "<b>bold</b>" in selected(opened)
    assert opened.execute_script("return window.hacked") is None
    assert opened.find_elements(By.CSS_SELECTOR, "img, #selected b, a[href*=evil]") == []
    assert "New item (test): the encoder saw no interaction of it; 9 users have it." in selected(opened)
    opened.execute_script("Plotly.Fx.hover('map-plot', [{curveNumber: 2, pointNumber: 0}])")
    hovered = opened.find_element(By.CSS_SELECTOR, "#map-plot .hovertext").text
    assert "<b>bold</b>" in " ".join(hovered.split())
    assert opened.find_elements(By.CSS_SELECTOR, "#map-plot .hovertext a") == []


def test_a_script_that_is_not_the_pages_own_is_refused(browser: webdriver.Chrome, report: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted.html"
    text = report.read_text(encoding="utf-8")
    script = (
        "<main><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><script src=evil.js></script>"
    )
    planted.write_text(text.replace("<main>", script, 1), encoding="utf-8")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(planted.as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert sum("Content Security Policy" in entry["message"] for entry in browser.get_log("browser")) >= 2
    assert requested(browser)[0] == planted.as_uri() and not any("evil" in one for one in requested(browser))


def test_searching_selects_an_item_and_shows_its_neighbours_under_both_encoders(opened: webdriver.Chrome) -> None:
    search(opened, "number 17")
    options = opened.find_elements(By.CSS_SELECTOR, "#found [role=option]")
    assert [option.text for option in options] == ["Item number 17"]
    search(opened, "number 17", Keys.ENTER)
    assert selected(opened).startswith(
        "Item number 17\nItem number 17. It has a second sentence.\nSeen in training: 37 "
    )
    original, trained, together = (listed(opened, name) for name in ("original", "trained", "together"))
    assert len(original) == len(trained) == 10 and len(together) == 9
    assert {original_group(item) for item in original[:9]} == {original_group(17)}
    assert {trained_group(item) for item in trained[:9]} == {trained_group(17)}
    assert {trained_group(item) for item in together} == {trained_group(17)}
    assert "7 shared" in opened.find_element(By.ID, "list-trained").text
    assert not opened.find_element(By.ID, "found").is_displayed()


def test_the_keyboard_walks_through_what_was_found(opened: webdriver.Chrome) -> None:
    search(opened, "number", Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    active = opened.find_element(By.CSS_SELECTOR, "#found [aria-selected=true]")
    field = opened.find_element(By.ID, "search")
    assert field.get_attribute("aria-activedescendant") == active.get_attribute("id") == "found-1"
    text = active.text
    field.send_keys(Keys.ENTER)
    assert selected(opened).startswith(text)
    search(opened, "no such words")
    assert opened.find_element(By.ID, "found").text == "No item here has these words."
    before = selected(opened)
    field.send_keys(Keys.ENTER)
    assert selected(opened) == before


def test_clicking_a_neighbour_selects_it(opened: webdriver.Chrome) -> None:
    search(opened, "id-17", Keys.ENTER)
    before = listed(opened, "original")
    button = opened.find_element(By.CSS_SELECTOR, "#list-original button")
    item = int(button.get_attribute("data-item") or -1)
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    assert f"Item id-{item}, " in selected(opened)
    assert listed(opened, "original") != before and item not in listed(opened, "original")


LONELIEST = """
const plot = document.getElementById('map-plot'), {x, y, customdata} = plot.data[0];
const gap = (one, other) => other === one ? 9 : Math.hypot(x[one] - x[other], y[one] - y[other]);
const near = (one) => Math.min(...x.map((_, other) => gap(one, other)));
const others = customdata.filter((one) => one !== arguments[0]);
const place = others.reduce((best, one) => near(one) > near(best) ? one : best);
const {xaxis, yaxis} = plot._fullLayout;
plot.scrollIntoView({block: 'center'});
const box = plot.getBoundingClientRect();
const left = box.left + xaxis._offset + xaxis.l2p(x[place]), top = box.top + yaxis._offset + yaxis.l2p(y[place]);
return {place, left, top};
"""


def test_clicking_the_map_selects_the_item_there(opened: webdriver.Chrome) -> None:
    search(opened, "id-17", Keys.ENTER)
    opened.find_element(By.CSS_SELECTOR, "input[name=map-encoder][value=original]").click()
    target: dict[str, Any] = opened.execute_script(LONELIEST, 17)
    pointer = ActionChains(opened)
    pointer.w3c_actions.pointer_action.move_to_location(round(target["left"]), round(target["top"]))
    pointer.pause(0.3).click().perform()
    wanted = f"Item id-{target['place']}, "
    WebDriverWait(opened, 5).until(lambda driver: wanted in selected(driver))
    assert "its ten nearest" in opened.find_element(By.ID, "map-selected").text


def test_the_map_shows_either_encoder_and_several_colourings(opened: webdriver.Chrome) -> None:
    places = "return document.getElementById('map-plot').data[0].x"
    colours = "return JSON.stringify(document.getElementById('map-plot').data[0].marker.color)"
    trained = opened.execute_script(places)
    opened.find_element(By.CSS_SELECTOR, "input[name=map-encoder][value=original]").click()
    assert opened.execute_script(places) != trained
    seen = set()
    for option in opened.find_elements(By.CSS_SELECTOR, "#colour option"):
        option.click()
        seen.add(opened.execute_script(colours))
    assert len(seen) == 4  # group, popularity, new or seen, domain


def test_another_choice_of_users_shows_their_table_and_plots(opened: webdriver.Chrome) -> None:
    shown = (
        "return [...document.querySelectorAll('.measured')].filter((one) => !one.hidden).map((one) => one.dataset.key)"
    )
    assert opened.execute_script(shown) == ["test|held_out|"] * 2
    opened.find_element(By.CSS_SELECTOR, "#ranking option[value='validation|held_out|']").click()
    assert opened.execute_script(shown) == ["validation|held_out|"] * 2
    means = opened.execute_script("return document.querySelector('#metric-plots .js-plotly-plot').data[0].x")
    assert means == [0.3, 0.2, 0.4]  # EASE, before, trained


SMALLEST_FONT = """
const texts = [...document.querySelectorAll('main *')].filter((one) =>
  one.children.length === 0 && one.textContent.trim() && one.getClientRects().length);
return Math.min(...texts.map((one) => parseFloat(getComputedStyle(one).fontSize)));
"""


WIDEST_PLOT = """
const plots = [...document.querySelectorAll('.js-plotly-plot')];
return Math.max(...plots.map((one) => one.querySelector('.main-svg').getBoundingClientRect().width - one.clientWidth));
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(opened: webdriver.Chrome, width: int) -> None:
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    opened.refresh()
    assert opened.execute_script("return innerWidth") == width
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script(SMALLEST_FONT) >= 12
    assert opened.execute_script(WIDEST_PLOT) <= 1  # each in its place, so that none covers another


def test_dark_and_light_are_drawn_in_other_colours(opened: webdriver.Chrome) -> None:
    colour = "return document.getElementById('map-plot').layout.font.color"
    inks = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        opened.refresh()
        inks.add(opened.execute_script(colour))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(inks) == 2
