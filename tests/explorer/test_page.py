"""The explorer as a person meets it: its page in Chromium, its port, its links and its downloads."""

import json
import shutil
import socket
import subprocess
import sys
import time
import webbrowser
from http.client import HTTPConnection

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tradeoff import cli, studies
from tradeoff.explorer import View, answer, numbers, server
from tradeoff.tolerances import EXACT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PATIENCE = 30
"""Seconds until a page must have answered on a busy machine."""
DEEP = """
function* deep(root) { for (const e of root.querySelectorAll('*')) { yield e; if (e.shadowRoot) yield* deep(e.shadowRoot) } }
const all = (selector) => [...deep(document)].filter(e => e.matches(selector))
"""


@pytest.fixture(scope="module")
def address():
    """The address of an explorer that runs as a person would run it."""
    port = free_port()
    command = [sys.executable, "-m", "tradeoff", "explore", "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = [running.stdout.readline(), running.stdout.readline()]
        assert f"http://127.0.0.1:{port}/" in said[-1]
        yield f"http://127.0.0.1:{port}/"
        running.terminate()
        running.wait(PATIENCE)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("the page is tested in Chromium: put chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1200"):
        options.add_argument(argument)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "profile.default_content_setting_values.automatic_downloads": 1},
    )
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(what):
    """The first true value of `what`, asked again and again."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError("the page did not answer")


def opened(browser, address):
    browser.get(address)
    idle = "return window.Bokeh !== undefined && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"
    until(lambda: browser.execute_script(idle))
    until(lambda: table(browser))


def elements(browser, selector):
    return browser.execute_script(DEEP + "return all(arguments[0])", selector)


def column(browser, source, name):
    """What the page holds of a line."""
    script = "return Array.from(Bokeh.documents[0].get_model_by_name(arguments[0]).data[arguments[1]])"
    return np.array(browser.execute_script(script, source, name))


def table(browser):
    """The numbers as the page prints them."""
    rows = browser.execute_script(DEEP + "return all('tr').map(row => [...row.cells].map(cell => cell.innerText))")
    return {row[0]: row[1] for row in rows}


def slider(browser, begins):
    (found,) = elements(browser, f"input[type=range][aria-label^='{begins}']")
    return found


def view_of(browser):
    """The view of the link that the page offers; none while it loads."""
    values = browser.execute_script(DEEP + "return all('input').map(field => field.value)")
    links = [value for value in values if "?world=" in value]
    return View.from_link(links[0].partition("?")[2]) if links else None


def shows(browser, view):
    """Whether the curves and every printed number are those that the package computes for a view."""
    shown = answer(view)
    curves = {
        "exact_safety": shown.curves.exact.safety,
        "safety": shown.curves.trained.safety,
        "limit": shown.curves.limit,
    }
    drawn = all(np.allclose(column(browser, "curves", n), c, rtol=EXACT.relative, atol=0) for n, c in curves.items())
    # The distance of the flow's end is rounding: it has no digits to compare.
    printed = {name: f"{value:.6g}" for name, value, _ in numbers(shown) if not name.startswith("flow")}
    return drawn and printed.items() <= table(browser).items()


@pytest.mark.parametrize(
    ("name", "field"), [("overlap", "overlap"), ("penalty", "log10_penalty"), ("radius", "radius")]
)
def test_a_slider_moves_the_curve_and_the_numbers(browser, address, name, field):
    opened(browser, address)
    assert shows(browser, View())
    slider(browser, name).send_keys(Keys.ARROW_LEFT * 3)
    moved = View(**{field: round(getattr(View(), field) - 0.03, 2)})
    until(lambda: view_of(browser) == moved)
    assert shows(browser, moved)
    assert not shows(browser, View())


def test_a_link_restores_its_view_and_going_back_the_one_before(browser, address):
    opened(browser, address)
    view = View(overlap=0.12, conflict=0.7, similarity=0.35, log10_penalty=-0.5, radius=0.9)
    opened(browser, address + view.link())
    assert view_of(browser) == view
    assert shows(browser, view)
    assert float(slider(browser, "similarity").get_attribute("value")) == 0.35
    slider(browser, "conflict").send_keys(Keys.ARROW_RIGHT)
    until(lambda: "conflict=0.71" in browser.current_url)
    browser.back()
    until(lambda: view_of(browser) == view)


def test_a_bad_link_is_answered_with_the_remedy_and_the_plain_view(browser, address):
    opened(browser, address + "?overlap=7")
    (alert,) = elements(browser, "[role=alert]")
    assert "overlap must lie in [0, 1]. Copy the link again" in alert.text
    assert shows(browser, View())


def test_data_and_figures_can_be_downloaded(browser, address, downloads):
    opened(browser, address)
    for label, ending in (("DATA", "nc"), ("FIGURE (SVG)", "svg"), ("FIGURE (PNG)", "png")):
        (button,) = (button for button in elements(browser, "button") if button.text.upper().startswith(label))
        button.click()
        until((downloads / f"tradeoff.{ending}").exists)
    data = studies.load(downloads / "tradeoff.nc")
    assert data is not None
    assert np.array_equal(data.safety_gap, answer(View()).curves.trained.safety)
    assert "</svg>" in (downloads / "tradeoff.svg").read_text()


def test_the_page_asks_nobody_else(browser, address):
    opened(browser, address)
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(asked) > 5
    assert [name for name in asked if not name.startswith((address, "data:", "blob:"))] == []


def test_other_pages_cannot_talk_to_it_nor_other_machines_reach_it(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    assert [handshake(port, f"http://{host}:{port}") for host in ("127.0.0.1", "evil.example")] == [101, 403]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port)) != 0


def handshake(port, origin):
    """The status with which the server answers a page of an origin that wants a websocket."""
    session = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    session.request("GET", "/")
    page = session.getresponse().read().decode()
    token = json.loads('"' + page.partition('"token":"')[2].partition('"')[0] + '"')
    headers = {
        "Origin": origin,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol": f"bokeh, {token}",
    }
    session.request("GET", "/ws", headers=headers)
    status = session.getresponse().status
    session.close()
    return status


def test_a_taken_port_is_refused_with_another_one(address):
    port = address.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "tradeoff", "explore", "--no-browser", "--port", port]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    assert f"port {port} is taken" in ended.stderr
    assert f"tradeoff explore --port {int(port) + 1}" in ended.stderr


def test_a_port_that_is_none_is_refused(capsys):
    assert cli.Explore(port=70000).run() == 2
    assert "give a port from 1 to 65535" in capsys.readouterr().err


def test_without_a_browser_the_address_is_explained(monkeypatch, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    server.open_browser("http://127.0.0.1:8642/", 8642)
    assert "No browser was found here" in capsys.readouterr().out
    monkeypatch.setattr(webbrowser, "open", lambda _: True)
    server.open_browser("http://127.0.0.1:8642/", 8642)
    assert capsys.readouterr().out == ""


def test_without_panel_the_command_that_installs_it_is_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "tradeoff.explorer.server")
    monkeypatch.delattr("tradeoff.explorer.server")
    monkeypatch.setitem(sys.modules, "panel", None)
    assert cli.Explore().run() == 2
    assert "pip install 'tradeoff[explore]'" in capsys.readouterr().err
