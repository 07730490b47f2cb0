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

"""
The contact sheet of many images in a real browser: how long until it can be used, and whether scrolling and voting stutter.

    PYTHONPATH=. python benchmarks/sheet.py --images 5000 --folder /a/disk

The pool is written by the library. Its pictures are of noise that is coarse, with a little that is fine, so that thumbnails are
about as large as those of photographs. The browser is headless Chromium without a GPU, by chromedriver.
"""

import argparse
import json
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from craft_trl.candidates.filter_config import FilterConfig
from craft_trl.candidates.groups import make_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.filtering.sheet import write_sheet


REWARDS = ["hpsv2", "pickscore", "aesthetic"]
VARIANTS = 8
# When the first pictures are there, by a clock that begins with the navigation.
FIRST = """
window.marks = {};
(function look() {
  const images = [...document.querySelectorAll("figure img")].filter((image) => image.getBoundingClientRect().top < innerHeight);
  if (images.length && images.every((image) => image.complete && image.naturalWidth)) marks.pictures = performance.now();
  else requestAnimationFrame(look);
})();
"""
# Scrolls by so many pixels a frame, and notes how long each frame took and how many prompts in the window were empty.
SCROLL = """
const [step, done] = arguments, frames = [], began = performance.now();
let last = began, empty = 0;
scrollTo(0, 0);
requestAnimationFrame(function frame(now) {
  frames.push(now - last);
  last = now;
  for (const section of document.querySelectorAll(".group:empty")) {
    const { top, bottom } = section.getBoundingClientRect();
    if (bottom > 0 && top < innerHeight) empty += 1;
  }
  scrollBy(0, step);
  if (performance.now() - began < 10000 && scrollY + innerHeight < document.documentElement.scrollHeight - 1) requestAnimationFrame(frame);
  else done({ frames: frames.slice(2), empty, pixels: scrollY });
});
"""
# From a key to the frame that shows what it did.
VOTE = """
const done = arguments[0], times = [];
(function next(count) {
  if (!count) return done(times);
  const began = performance.now();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: count % 2 ? "ArrowRight" : "b" }));
  requestAnimationFrame(() => setTimeout(() => { times.push(performance.now() - began); next(count - 1); }));
})(100);
"""


def fill(folder: Path, count: int) -> tuple[list, CandidatePool]:
    """Groups, and a pool of their images."""
    num_groups, rng = -(-count // (1 + VARIANTS)), np.random.default_rng(0)
    prompts = [
        f"a picture of {' and '.join(f'thing {rng.integers(4000)}' for _ in range(5))}, {i}" for i in range(num_groups)
    ]
    groups = make_groups(prompts, [[f"{p}, in manner {j} of many" for j in range(VARIANTS)] for p in prompts])
    pool = CandidatePool(folder / "pool", REWARDS)
    for start in range(0, num_groups, 16):
        keys = [key for group in groups[start : start + 16] for key in group.keys]
        images = []
        for _ in keys:
            coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize(
                (256, 256), Image.Resampling.BICUBIC
            )
            fine = rng.integers(-8, 9, (256, 256, 1))
            images.append(Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)))
        pool.append(keys, images, {name: rng.random(len(keys)) for name in REWARDS})
    return groups, pool


def open_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": FIRST})
    driver.set_script_timeout(120)
    return driver


def look(page: Path, step: int) -> dict:
    """What one visit of the page is like."""
    driver = open_browser()
    try:
        driver.get(page.as_uri())
        while not (shown := driver.execute_script("return marks.pictures")):
            time.sleep(0.01)
        timing = "const [at] = performance.getEntriesByType('navigation'); return at.domContentLoadedEventEnd"
        usable = driver.execute_script(timing)
        groups = len(driver.find_elements("css selector", ".group"))
        scrolled = driver.execute_async_script(SCROLL, step)
        frames = np.array(scrolled["frames"])
        votes = np.array(driver.execute_async_script(VOTE))
        heap = driver.execute_script("return performance.memory.usedJSHeapSize")
        return {
            "prompts": groups,
            "milliseconds_until_usable": round(usable),
            "milliseconds_until_pictures": round(shown),
            "frames": len(frames),
            "pixels": round(scrolled["pixels"]),
            "milliseconds_of_a_frame": {q: round(float(np.percentile(frames, q)), 1) for q in (50, 95, 99, 100)},
            "frames_over_50_ms": int((frames > 50).sum()),
            "empty_prompts_seen": scrolled["empty"],
            "milliseconds_of_a_vote": {q: round(float(np.percentile(votes, q)), 1) for q in (50, 95, 100)},
            "megabytes_of_javascript": round(heap / 1e6),
        }
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--visits", type=int, default=3)
    parser.add_argument("--step", type=int, default=60, help="Pixels that are scrolled a frame.")
    parser.add_argument("--folder", required=True, help="Where the pool is written and removed again.")
    args = parser.parse_args()
    folder = Path(args.folder) / f"sheet-{args.images}"
    folder.mkdir(parents=True)
    try:
        groups, pool = fill(folder, args.images)
        start = time.perf_counter()
        made = write_sheet(folder / "sheet.html", groups, pool, FilterConfig())
        result = {"python": platform.python_version(), "selenium": version("selenium"), **made}
        result["seconds_of_writing"] = round(time.perf_counter() - start, 1)
        result["cores"], result["load"] = os.cpu_count(), [round(load, 1) for load in os.getloadavg()]
        result["visits"] = [look(folder / "sheet.html", args.step) for _ in range(args.visits)]
        print(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
