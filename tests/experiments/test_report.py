"""The report of the committed gallery: every figure with its theorems, its data and its scripts, in one page that is light."""

import html
import re
import shutil
from pathlib import Path

import pytest
from selenium import webdriver

from experiments import report
from experiments.catalogue import CATALOGUE
from tradeoff import theorems

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "figures" / "gallery"
SHOWN = [one for one in CATALOGUE if (GALLERY / f"{one.name}.nc").exists()]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    for folder in ("data", "figures"):
        (out / folder).symlink_to(GALLERY)
    report.write_report(SHOWN, out)
    return out


@pytest.fixture(scope="module")
def page(out):
    return (out / "report.html").read_text()


def section(page, name):
    return html.unescape(re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)[0])


def test_every_link_leads_to_a_file_or_a_section(page, out):
    links = re.findall(r'<a [^>]*href="([^"]+)"', page)
    assert {f"#{one.name}" for one in SHOWN} <= set(links)
    for link in links:
        assert f'id="{link[1:]}"' in page if link.startswith("#") else (out / link).is_file(), link


@pytest.mark.parametrize("one", SHOWN, ids=lambda one: one.name)
def test_a_section_names_theorems_data_figures_and_scripts(page, one):
    said = section(page, one.name)
    assert one.figure.CAPTION in said
    # Every verdict is listed under the figure of the verdicts; elsewhere a theorem that does not exist would raise.
    assert one.figure.THEOREMS
    for name in one.figure.THEOREMS:
        assert re.search(rf"(<b>|<td>){re.escape(name)}(</b>|</td>)", said)
        assert theorems.get(name).title in said
    for made in (f"data/{one.name}.nc", f"figures/{one.name}.svg", f"figures/{one.name}.png"):
        assert f'href="{made}"' in said
    for script in (f"experiments/{one.name}.py", f"figures/{one.name}.py"):
        assert script in said
        assert (ROOT / script).is_file()


def test_the_page_is_light_and_its_captions_name_no_colour_that_the_dark_page_turns(page):
    assert len(page.encode()) <= 5_000_000
    for one in CATALOGUE:
        assert not re.search(r"\b(black|white|dark|darker|light|lighter)\b", one.figure.CAPTION), one.name


def test_a_phone_shows_the_page_without_scrolling_sideways_and_figures_follow_the_night(out):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("the page is measured in Chromium: put chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        browser.get((out / "report.html").as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert browser.execute_script("return document.documentElement.scrollWidth") == 390
        filters = []
        for scheme in ("light", "dark"):
            night = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", night)
            look = "return getComputedStyle(document.querySelector('.card svg')).filter"
            filters.append(browser.execute_script(look))
        assert filters[0] == "none" != filters[1]
    finally:
        browser.quit()
