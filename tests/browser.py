# Copyright 2026 The craft_trl authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""A real browser, for the pages that people are to use."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def open_browser(downloads: Path) -> Iterator:
    """Headless Chromium that downloads into a folder. Without one a test is skipped."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        missing = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root has no sandbox
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options=options, service=Service(driver))
    driver.downloads = downloads
    try:
        yield driver
    finally:
        driver.quit()


def drop(browser, name: str, text: str) -> None:
    """Let a file fall on the page."""
    browser.execute_script(
        "const data = new DataTransfer(); data.items.add(new File([arguments[1]], arguments[0]));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))",
        name,
        text,
    )


def wait_for(browser, is_true: Callable[[], bool] = lambda: True) -> None:
    """Until it is true, and what the page remembers is kept."""
    script = "return Number(document.body.dataset.pending)"
    deadline = time.monotonic() + 20
    while not (browser.execute_script(script) == 0 and is_true()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert browser.execute_script(script) == 0 and is_true(), browser.find_element("id", "status").text


def open_forgetful(browser, path: Path) -> None:
    """Open a page of votes in a browser that remembers nothing of it."""
    browser.get(path.as_uri())
    wait_for(browser)
    browser.execute_async_script(
        """
        indexedDB.open("craft_trl").onsuccess = ({ target: { result: database } }) => {
          const transaction = database.transaction("votes", "readwrite");
          transaction.objectStore("votes").clear();
          transaction.oncomplete = () => { database.close(); arguments[0](); };
        };
        """
    )
    reload(browser)


def reload(browser) -> None:
    wait_for(browser)
    browser.refresh()
    wait_for(browser)
