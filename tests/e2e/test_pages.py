"""The pages as a person uses them: a real Airflow as ``make ui`` starts it, a real browser, the tiny shop.

One night is there at the start, the second is triggered by the form; the tests are the chapters of one visit, in order.
Screenshots lie in ``NIGHTCART_SCREENSHOTS``, where that is set.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from recsys_tasks.lake import Lake
from recsys_tasks.online_store import open_store
from recsys_tasks.settings import Settings
from recsys_tasks.versions import current, read_lists
from tests.e2e.conftest import a_free_port, environment_of
from tests.e2e.test_ui import is_running, nightly, start
from tests.tiny_shop import CUSTOMERS

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
RUN = "by_hand+1"
LATER = "2011-04-13T00:00:00Z"
PATIENCE = 60_000
"""Milliseconds that anything on a page may take on a busy machine."""
NIGHT = 600
"""Seconds that the second night may take, as long; alone on two cores it takes a minute."""


class Visit:
    """A person's browser, with all that went wrong in it and all the hosts it asked."""

    def __init__(self, browser, url: str, user: str, password: str) -> None:
        self.url, self.errors, self.foreign = url, [], []
        context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
        context.set_default_timeout(PATIENCE)
        context.on("request", lambda asked: self._judge(asked.url))
        self.page = context.new_page()
        self.page.goto(f"{url}/plugin/recsys/recsys/versions")
        self.page.wait_for_url(lambda url: "/auth/login" in url)  # nothing is shown to who has no login
        self.page.fill("[name=username]", user)
        self.page.fill("[name=password]", password)
        self.page.click("[type=submit]")
        self.page.wait_for_url(lambda url: "/auth/login" not in url)
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _judge(self, asked: str) -> None:
        if not asked.startswith((self.url, "data:", "blob:")):
            self.foreign.append(asked)

    def open(self, path: str):
        """Go to one of our pages inside Airflow and return its frame."""
        self.page.goto(f"{self.url}/plugin/recsys/recsys/{path}")
        frame = self.page.frame_locator("iframe")
        frame.locator("nav").wait_for()
        return frame

    def show(self, name: str) -> None:
        if folder := os.environ.get("NIGHTCART_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{folder}/{name}.png")


@pytest.fixture(scope="module")
def home(tiny_night, tmp_path_factory) -> Path:
    """A copy of the night that was made already."""
    return Path(shutil.copytree(tiny_night[0], tmp_path_factory.mktemp("pages") / "home"))


@pytest.fixture(scope="module")
def airflow(home) -> Iterator[str]:
    users = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,eve:viewer"}
    ui = start(environment_of(home, a_free_port()) | users)
    family: list[psutil.Process] = []
    try:
        said = ui.stdout.readline()
        found = re.search(r"at (http://127\.0\.0\.1:\d+) ", said)
        assert found, said + ui.stdout.read()
        family = psutil.Process(ui.pid).children(recursive=True)
        yield found[1]
        ui.send_signal(signal.SIGINT)
        ui.wait(timeout=60)
    finally:
        ui.kill()
        for process in filter(is_running, family):
            process.kill()


@pytest.fixture(scope="module")
def passwords(home, airflow) -> dict[str, str]:
    return json.loads((home / "airflow" / "simple_auth_manager_passwords.json.generated").read_text())


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser, airflow, passwords) -> Visit:
    return Visit(browser, airflow, "admin", passwords["admin"])


@pytest.fixture(scope="module")
def versions(visit, home, airflow, tiny_night) -> list[str]:
    """The version of the night that was there, and that of a second one, triggered by the form as a person does."""
    page, token = visit.page, {c["name"]: c["value"] for c in visit.page.context.cookies()}["_token"]
    nightly(airflow, token)
    page.goto(f"{airflow}/dags/nightly")
    page.get_by_test_id("trigger-dag-button").first.click()
    page.fill("[name=element_shop]", str(tiny_night[1]))
    page.fill("[name=element_as_of]", LATER)
    page.get_by_role("button", name="Advanced Options").click()
    page.fill("[name=dagRunId]", RUN)
    visit.show("trigger")
    page.get_by_test_id("trigger-dag-submit").click()
    run = f"{airflow}/api/v2/dags/nightly/dagRuns/{quote(RUN, safe='')}"
    deadline, state = time.monotonic() + NIGHT, None
    while state not in ("success", "failed") and time.monotonic() < deadline:
        page.wait_for_timeout(1000)  # milliseconds; the page goes on showing how far the run is
        state = page.request.get(run).json().get("state")
    assert state == "success"
    first, second = tiny_night[2]["publish"], current(Lake(home / "lake"))["version"]
    assert second != first
    return [first, second]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_report_follows_airflows_theme(visit, versions, theme):
    visit.page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
    inner = visit.open("").frame_locator("iframe")
    inner.get_by_text("Published").first.wait_for()
    assert inner.locator("html").get_attribute("data-theme") == theme
    shade = inner.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade)[:3])) > 3 * 128) == (theme == "light")
    assert inner.get_by_text(versions[1]).first.is_visible()
    visit.show(f"report-{theme}")


def test_an_earlier_night_can_be_chosen(visit, versions):
    frame = visit.open("")
    frame.get_by_label("Night").select_option(index=1)
    frame.frame_locator("iframe").get_by_text(versions[0]).first.wait_for()
    assert "night=20110412" in visit.page.url, "the address of the browser does not lead to what is shown"


def test_the_tab_on_a_run_shows_the_report_that_it_wrote(visit, versions):
    visit.page.goto(f"{visit.url}/dags/nightly/runs/{quote(RUN, safe='')}")
    visit.page.get_by_role("tablist").get_by_text("Recsys").or_(
        visit.page.locator("a[href$='plugin/recsys_report']")
    ).first.click()
    frame = visit.page.frame_locator("iframe")
    frame.get_by_text(RUN).wait_for()
    frame.frame_locator("iframe").get_by_text(versions[1]).first.wait_for()
    visit.show("tab")


def test_the_leaderboard_draws_both_nights(visit, versions):
    frame = visit.open("leaderboard")
    assert frame.locator("svg").count() == 2
    assert frame.locator("svg").first.locator("circle").count() == 8
    visit.show("leaderboard")
    frame.get_by_label("Metric").select_option("recall@10")
    frame.get_by_text("recall@10 of each night").first.wait_for()


def test_the_inspector_leads_from_a_search_to_why(visit, versions):
    frame = visit.open("inspector")
    frame.get_by_label("Customer or item").fill(CUSTOMERS[1])
    frame.get_by_role("button", name="Search").click()
    frame.get_by_role("link", name=CUSTOMERS[1], exact=True).click()
    frame.get_by_role("heading", name=f"Customer {CUSTOMERS[1]}").wait_for()
    assert "bought" in frame.get_by_role("table", name="home", exact=True).inner_text()
    visit.show("customer")
    frame.get_by_label("beside").select_option(versions[0])
    frame.get_by_role("table", name=f"home of {versions[0]}").wait_for()
    assert frame.get_by_role("table", name=f"home of {versions[1]}").is_visible()
    visit.show("beside")
    frame.get_by_role("table", name=f"home of {versions[1]}").get_by_role("link").first.click()
    frame.get_by_role("heading", name="Similar items").wait_for()
    visit.show("item")


def test_a_viewer_looks_and_cannot_roll_back(browser, airflow, passwords, versions):
    eve = Visit(browser, airflow, "eve", passwords["eve"])
    frame = eve.open("versions")
    frame.get_by_text(versions[0]).first.wait_for()
    assert frame.get_by_role("button").count() == 0
    eve.show("viewer")
    body = {"version": versions[0], "reason": "no"}
    answer = eve.page.request.post(f"{airflow}/recsys/rollback", data=body, headers={"Origin": airflow})
    assert answer.status == 403
    assert (eve.errors, eve.foreign) == ([], [])


def test_a_roll_back_takes_readers_to_the_older_version(visit, versions, home, monkeypatch):
    first, second = versions
    frame = visit.open("versions")
    frame.locator(f'button[data-version="{first}"]').click()
    dialog = frame.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("odd <b>prices</b>")
    visit.show("roll-back")
    dialog.get_by_role("button", name="Roll back").click()
    frame.get_by_text("rolled back: odd <b>prices</b>, asked for by admin").wait_for()
    assert first in frame.locator("tr.current").inner_text()
    visit.show("versions")
    monkeypatch.setenv("NIGHTCART_HOME", str(home))
    lake = Lake(home / "lake")
    assert current(lake)["version"] == first
    with open_store(Settings(), "tiny") as store:
        for reader, items in read_lists(lake, "home", first):
            assert store.get("home", reader) == items
    frame.locator(f'button[data-version="{second}"]').wait_for()


def test_nothing_went_wrong_in_the_browser_and_no_other_host_was_asked(visit, versions):
    assert visit.errors == []
    assert visit.foreign == []
