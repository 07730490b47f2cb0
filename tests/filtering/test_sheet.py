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


"""The contact sheet in a real browser, from a real file, with real clicks and a real download."""

import json
import shutil
import time

import numpy as np
import pytest
import yaml
from PIL import Image as PILImage

from craft_trl.candidates.groups import make_groups, save_groups
from craft_trl.candidates.pool import CandidatePool
from craft_trl.cli.main import main
from craft_trl.filtering.votes import key_line, vote_line
from craft_trl.stages import Stage

from ..browser import drop, open_browser, open_forgetful, reload, wait_for


def veto_line(key):
    return vote_line(key, "veto")


# Per group and image: hpsv2, aesthetic. Fox and car pass whole, owl's second variant loses, star is rejected at once.
SCORES = {
    "a fox": [(0.2, 5.0), (0.3, 6.0), (0.4, 7.0)],
    "<b>a car</b> & \u201cred\u201d": [(0.2, 5.0), (0.25, 8.0), (0.3, 6.0)],
    "an owl": [(0.2, 5.0), (0.9, 6.0), (0.3, 4.0)],
    "a star": [(0.2, 5.0), (0.1, 4.0)],
    "a boat": [],  # not drawn yet
}
GROUPS = make_groups(list(SCORES), [[f"{prompt}, sharp", f"{prompt}, detailed"] for prompt in SCORES], seed=2**60)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, tiny):
    """A run with a pool, and a recipe that filters it."""
    folder = tmp_path_factory.mktemp("sheet")
    stage = Stage("generate", folder / "run" / "pool", {"rewards": {"hpsv2": "h", "aesthetic": "a"}})
    stage.begin()
    pool = CandidatePool(stage.folder, ["hpsv2", "aesthetic"])
    rng = np.random.default_rng(0)
    for j in range(3):  # wave by wave, so that the images of a group lie in different shards
        drawn = [group for group in GROUPS if len(SCORES[group.prompt]) > j]
        images = [
            PILImage.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).resize((320, 240)) for _ in drawn
        ]
        values = np.array([SCORES[group.prompt][j] for group in drawn])
        pool.append([g.keys[j] for g in drawn], images, {"hpsv2": values[:, 0], "aesthetic": values[:, 1]})
    stage.finish(images=len(pool))
    (folder / "run" / "prompts").mkdir()
    save_groups(GROUPS, folder / "run" / "prompts" / "groups.jsonl")
    recipe = {"prompts": "none.txt", "templates": ["{prompt}"], "model_name_or_path": "none", "num_variants": 2}
    recipe |= {"rewards": ["hpsv2", "aesthetic"], "output_dir": str(folder / "run")}
    (folder / "candidates.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def craft(command, run_dir, *arguments):
    return main([command, "--config", str(run_dir / "candidates.yaml"), *map(str, arguments)])


class TestCommand:
    def test_what_it_says(self, run_dir, capsys):
        assert craft("sheet", run_dir, "--thumbnail_size", 32) == 0
        path = run_dir / "run" / "sheet.html"
        said = capsys.readouterr().out
        assert said.startswith("[sheet] 11 images of 4 groups (1 groups are not drawn yet), at 32 pixels, 0.0 MB: ")
        small = path.stat().st_size
        assert craft("sheet", run_dir, "--thumbnail_size", 320) == 0  # an older sheet is replaced
        assert path.stat().st_size > small + 11 * 1000

    @pytest.mark.parametrize(
        ("arguments", "shown"),
        [
            (["--only", "kept"], ["a fox", "<b>a car</b> & \u201cred\u201d"]),
            (["--only", "dropped"], ["an owl", "a star"]),
            (["--only", "kept", "--filter_level", "image"], [*SCORES][:3]),
            (["--num_groups", "2"], ["a fox", "a star"]),
            (["--only", "dropped", "--num_groups", "1"], ["an owl"]),
        ],
    )
    def test_which_groups(self, run_dir, tmp_path, arguments, shown):
        assert craft("sheet", run_dir, "--sheet_file", tmp_path / "s.html", *arguments) == 0
        assert [group["prompt"] for group in data(tmp_path / "s.html")["groups"]] == shown

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--num_groups", "0"], 2, "num_groups must be at least 1, got 0"),
            (["--thumbnail_size", "8"], 2, "thumbnail_size must be from 16 to 1024, got 8"),
            (["--only", "good"], 2, "invalid choice: 'good'"),
            (["--sheet_file", "precious.html"], 2, "precious.html is there and is no contact sheet: choose another"),
            (["--sheet_file", "."], 2, "is there and is no contact sheet"),
            (["--veto", "nothing.jsonl"], 2, "veto: there is no file nothing.jsonl"),
            (["--output_dir", "elsewhere"], 2, "There is no elsewhere/prompts/groups.jsonl: run `craft expand` first"),
            (["--rewards", "hpsv2"], 2, "was scored with hpsv2, aesthetic; rewards must be the same"),
            (["--filter_rewards", "mps"], 2, "filter_rewards must be among the rewards hpsv2, aesthetic"),
            (["--only", "kept", "--filter_rewards", "hpsv2", "--veto", "all.jsonl", "--num_prompts", "9"], 0, ""),
        ],
    )
    def test_mistakes(self, run_dir, tmp_path, capsys, arguments, code, message):
        (tmp_path / "precious.html").write_text("<html>mine</html>")
        (tmp_path / "all.jsonl").write_text(veto_line(GROUPS[0].keys[0]), encoding="utf-8")
        before = (run_dir / "run" / "sheet.html").exists()
        assert craft("sheet", run_dir, *arguments) == code
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
        if code:
            assert err.count("\n") == 1 and (run_dir / "run" / "sheet.html").exists() == before
        assert (tmp_path / "precious.html").read_text() == "<html>mine</html>"

    def test_more_than_a_browser_takes(self, run_dir, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("craft_trl.filtering.sheet.LARGEST", 15_000)
        assert craft("sheet", run_dir, "--sheet_file", tmp_path / "s.html") == 2
        err = capsys.readouterr().err
        assert (
            "A page of 11 images would be 0 MB, and browsers take 0: show fewer groups, such as num_groups 1, or"
            in err
        )
        assert "Traceback" not in err and not (tmp_path / "s.html").exists()
        assert craft("sheet", run_dir, "--sheet_file", tmp_path / "s.html", "--thumbnail_size", 16) == 0

    def test_nothing_to_show(self, run_dir, tmp_path, capsys):
        save_groups(GROUPS[3:], tmp_path / "groups.jsonl")
        shutil.copytree(run_dir / "run" / "pool", tmp_path / "other" / "pool")
        (tmp_path / "other" / "prompts").mkdir()
        shutil.copy(tmp_path / "groups.jsonl", tmp_path / "other" / "prompts")
        assert craft("sheet", run_dir, "--output_dir", tmp_path / "other", "--only", "kept") == 1
        assert "There is nothing to show: of 2 groups, 1 are drawn, none kept." in capsys.readouterr().err


def data(path):
    """What a sheet shows, as it lies in the page."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that downloads into a folder. Without one these tests are skipped."""
    with open_browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture
def sheet(browser, run_dir, tmp_path):
    """Opens a sheet of the run, made with the given arguments, in a browser that remembers nothing."""

    def open_sheet(*arguments):
        path = tmp_path / "sheet.html"
        assert craft("sheet", run_dir, "--sheet_file", path, *arguments) == 0
        open_forgetful(browser, path)
        return Page(browser)

    yield open_sheet
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


class Page:
    """The sheet as a person sees it."""

    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def prompts(self):
        """Prompts on the page, in their order."""
        return [node.text.splitlines()[0] for node in self.all(".group > p")]

    def box(self, group, image):
        return self.all(".group")[group].find_elements("css selector", "input")[image]

    def verdicts(self, group):
        return [
            node.text
            for node in self.all(".group")[group].find_elements("css selector", "figcaption > span:last-child")
        ]

    def status(self):
        return self.all("#status")[0].text

    def choose(self, id, value):
        self.all(f"#{id} option[value='{value}']")[0].click()

    def press(self, keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(keys).perform()

    def load(self, path):
        """Takes a file in the dialog that the page opens."""
        self.all("#file")[0].send_keys(str(path))

    def drop(self, name, text):
        drop(self.browser, name, text)

    def says(self, text):
        """Waits until the status is this text: a file is read while the page goes on."""
        deadline = time.monotonic() + 20
        while self.status() != text and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.status() == text

    def pressed(self):
        """Images with a vote to keep or as the best, as group, image and word."""
        return [
            (i, j, button.text)
            for i, group in enumerate(self.all(".group"))
            for j, figure in enumerate(group.find_elements("css selector", "figure"))
            for button in figure.find_elements("css selector", "button[aria-pressed=true]")
        ]

    def save(self):
        """Clicks the button and waits for the file."""
        path = self.browser.downloads / "votes.jsonl"
        path.unlink(missing_ok=True)
        self.all("#save")[0].click()
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return path


class TestPage:
    def test_what_is_on_it(self, sheet, browser):
        browser.get_log("performance")
        page = sheet()
        assert page.prompts() == [*SCORES][:4]  # marks in a prompt are text
        images = page.all("figure img")
        assert len(images) == 11 and all(image.get_property("naturalWidth") == 192 for image in images)
        assert page.verdicts(0) == ["what the others must beat", "kept, advantage 0.00", "kept, advantage 1.22"]
        assert page.verdicts(2)[1:] == ["dropped: variant 2 does not win on aesthetic", "does not win on aesthetic"]
        assert page.verdicts(3)[1:] == ["does not win on hpsv2, aesthetic"]
        assert "1 not drawn" in page.all(".group")[3].text
        assert page.all("dl")[1].text.split() == ["hpsv2", "0.3000", "+0.10", "aesthetic", "6.000", "+1.0"]
        assert len(page.all("figure.kept")) == 4
        assert page.status() == "4 of 4 prompts shown \u00b7 4 of 11 images kept, of 2 prompts \u00b7 0 vetoed"
        # Nothing but the file itself was asked for.
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
        assert urls and all(url.startswith(("file:", "data:")) for url in urls)

    def test_sort_and_filter(self, sheet):
        page = sheet()
        fox, car, owl, star = page.prompts()
        page.choose("sort", "-hpsv2")
        assert page.prompts() == [owl, fox, car, star]
        page.choose("sort", "+aesthetic")
        assert page.prompts() == [star, owl, fox, car]
        page.choose("sort", "")
        for show, expected in (
            ("kept", [fox, car]),
            ("dropped", [owl, star]),
            ("vetoed", []),
            ("all", [fox, car, owl, star]),
        ):
            page.choose("show", show)
            assert page.prompts() == expected and page.status().startswith(f"{len(expected)} of 4 prompts")
        page.choose("lost", "aesthetic")
        assert page.prompts() == [owl, star]
        page.choose("lost", "hpsv2")
        assert page.prompts() == [star]
        page.choose("lost", "")
        page.all("#search")[0].send_keys("DETAILED car")
        assert page.prompts() == [car]

    @pytest.mark.parametrize(("level", "left"), [("group", []), ("image", ["a fox, sharp", "an owl, sharp"])])
    def test_clicked_and_saved_and_filtered(self, sheet, run_dir, tmp_path, capsys, level, left):
        """The page says before what `craft filter` says after."""
        page = sheet("--filter_level", level)
        page.box(0, 2).click()  # a variant
        page.all(".group")[1].find_elements("css selector", "img")[0].click()  # an original, by its picture
        page.box(3, 1).click()
        page.box(3, 1).click()  # and back
        assert page.verdicts(0)[2] == "vetoed" and page.verdicts(1)[1:] == ["dropped: the original is vetoed"] * 2
        path = page.save()
        assert page.status() == "Saved 2 votes as votes.jsonl"
        assert path.read_text(encoding="utf-8") == f"{veto_line(GROUPS[0].keys[2])}\n{veto_line(GROUPS[1].keys[0])}\n"

        kept = [node.find_element("css selector", "figcaption > span").text for node in page.all("figure.kept")]
        assert kept == left
        capsys.readouterr()
        run = tmp_path / "run"
        shutil.copytree(run_dir / "run", run)
        save_groups(GROUPS[:4], run / "prompts" / "groups.jsonl")  # the filter wants every original
        code = craft("filter", run_dir, "--output_dir", run, "--filter_level", level, "--veto", path)
        captured = capsys.readouterr()
        if not left:
            assert code == 1 and "2 images are vetoed" in captured.err
            return
        assert code == 0 and "2 of 11 images kept, from 2 of 4 groups, 2 images vetoed" in captured.out
        from datasets import load_from_disk

        assert load_from_disk(str(run / "dataset"))["train"]["expanded_prompt"][:] == left

        from craft_trl.evaluation.report import _run

        assert _run(run, run / "model")["candidates"]["vetoed"] == 2

        # The content counts: other lines are another filter, the same ones in another order and file are not.
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / "again.jsonl").write_text("".join(lines[::-1]), encoding="utf-8")
        arguments = ("--output_dir", run, "--filter_level", level)
        assert craft("filter", run_dir, *arguments, "--veto", tmp_path / "again.jsonl") == 0
        assert "done before" in capsys.readouterr().out
        assert craft("filter", run_dir, *arguments) == 0
        said = capsys.readouterr().out
        assert (
            "veto was" in said and "set aside" in said and "5 of 11 images kept" in said and "vetoed, in" not in said
        )

    def test_loaded_back(self, sheet, tmp_path):
        """Vetoes that are given are ticked, and those of images that are not on the page are not lost."""
        given = [GROUPS[2].keys[1], GROUPS[0].keys[1]]
        (tmp_path / "veto.jsonl").write_text("".join(veto_line(key) + "\n" for key in given), encoding="utf-8")
        page = sheet("--veto", tmp_path / "veto.jsonl", "--only", "kept")
        assert (
            page.box(0, 1).is_selected()
            and [box.is_selected() for box in page.all("input[type=checkbox]")].count(True) == 1
        )
        assert "2 vetoed, 1 of them not on this page, 2 fewer kept" in page.status()
        page.box(1, 2).click()
        page.box(0, 1).click()
        lines = page.save().read_text(encoding="utf-8").splitlines()
        assert lines == [veto_line(GROUPS[2].keys[1]), veto_line(GROUPS[1].keys[2])]

    def test_reload_forgets_nothing(self, sheet, browser):
        page = sheet()
        page.box(0, 1).click()
        reload(browser)
        assert page.box(0, 1).is_selected() and "1 vetoed, 2 fewer kept" in page.status()
        page = sheet("--filter_level", "image")  # another sheet remembers nothing of it
        assert "0 vetoed" in page.status()

    def test_keyboard(self, sheet, browser):
        from selenium.webdriver.common.keys import Keys

        page = sheet()
        page.press("j" + Keys.ARROW_RIGHT + "x")  # the first prompt, its first variant
        assert page.box(0, 1).is_selected()
        page.press(" ")
        assert not page.box(0, 1).is_selected()
        page.press(Keys.ARROW_RIGHT * 2 + "x")  # on to the next prompt's original
        assert page.box(1, 0).is_selected()
        page.press("jg")
        assert page.box(2, 0).is_selected()
        page.press("kk" + Keys.ARROW_RIGHT + "x")
        assert page.box(0, 1).is_selected() and "3 vetoed" in page.status()
        page.press("/jx")  # typed, not obeyed
        assert page.all("#search")[0].get_property("value") == "jx" and "3 vetoed" in page.status()
        page.press(Keys.ESCAPE)
        (browser.downloads / "votes.jsonl").unlink(missing_ok=True)
        page.press("s")
        assert page.status() == "Saved 3 votes as votes.jsonl"

    def test_votes_by_keys_and_mouse(self, sheet, browser):
        """Keep, veto and best exclude each other, and of a prompt one image is the best."""
        from selenium.webdriver.common.keys import Keys

        page = sheet()
        page.press("jc" + Keys.ARROW_RIGHT + "b")
        assert page.pressed() == [(0, 0, "keep"), (0, 1, "best")]
        page.press(Keys.ARROW_RIGHT + "b")
        assert page.pressed() == [(0, 0, "keep"), (0, 2, "best")]
        page.press(Keys.ARROW_LEFT + "x")
        buttons = page.all(".group")[0].find_elements("css selector", "figure:nth-child(2) button")
        buttons[0].click()  # instead of the veto
        page.press("j" + Keys.ARROW_RIGHT + "cc")  # from the button that has the focus; and back
        assert page.pressed() == [(0, 0, "keep"), (0, 1, "keep"), (0, 2, "best")] and not page.box(0, 1).is_selected()
        page.all(".group")[2].find_elements("css selector", "figure:nth-child(3) button.best")[0].click()
        page.press("kg")
        assert "1 vetoed, 2 keep, 2 best, 2 fewer kept" in page.status()
        lines = page.save().read_text(encoding="utf-8").splitlines()
        expected = [(0, 0, "keep"), (0, 1, "keep"), (0, 2, "best"), (1, 0, "veto"), (2, 2, "best")]
        assert sorted(lines) == sorted(vote_line(GROUPS[i].keys[j], vote) for i, j, vote in expected)
        reload(browser)
        assert page.pressed() == [(0, 0, "keep"), (0, 1, "keep"), (0, 2, "best"), (2, 2, "best")]
        for show, count in (("voted", 3), ("unvoted", 1), ("vetoed", 1)):
            page.choose("show", show)
            assert len(page.prompts()) == count

    def test_loaded_by_the_page(self, sheet, tmp_path):
        """Through the dialog and by a drop; old files of vetoes and votes with notes; seeds beyond a double's digits."""
        page = sheet("--only", "kept")
        page.press("jc")
        old = [key_line(GROUPS[0].keys[0]), json.dumps(json.loads(key_line(GROUPS[2].keys[1])) | {"note": "hands"})]
        (tmp_path / "veto.jsonl").write_text("\n".join(old), encoding="utf-8")
        page.load(tmp_path / "veto.jsonl")
        assert page.says("Loaded 2 votes of veto.jsonl: 1 of images that are not on this page, 1 in place of others")
        assert page.box(0, 0).is_selected() and page.pressed() == []
        votes = [vote_line(GROUPS[1].keys[1], "best"), "", vote_line(GROUPS[0].keys[2], "keep")]
        page.drop("votes.jsonl", "\ufeff" + "\r\n".join(votes))
        assert page.says("Loaded 2 votes of votes.jsonl") and page.pressed() == [(0, 2, "keep"), (1, 1, "best")]
        saved = page.save()
        votes = [(0, 0, "veto"), (2, 1, "veto"), (1, 1, "best"), (0, 2, "keep")]
        assert saved.read_text(encoding="utf-8").splitlines() == [vote_line(GROUPS[i].keys[j], v) for i, j, v in votes]
        again = sheet("--only", "kept", "--votes", saved)
        assert again.pressed() == [(0, 2, "keep"), (1, 1, "best")] and "1 of them not on this page" in again.status()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "not JSON"),
            ('{"prompt": "a fox", "seed": 1}', "not a vote, it needs prompt, expanded_prompt, seed"),
            (
                key_line(GROUPS[0].keys[0])[:-1] + ', "vote": "good"}',
                'vote must be one of veto, keep, best, got "good"',
            ),
            (vote_line(GROUPS[0].keys[1], "best"), 'best, but keep in an earlier line, for "a fox, sharp"'),
            (f"{vote_line(GROUPS[0].keys[0], 'best')}\n{vote_line(GROUPS[0].keys[2], 'best')}", "SECOND"),
            ('{"page": "p", "pair": "q", "vote": "left"}', "a vote of a blind comparison"),
        ],
    )
    def test_mistakes_in_a_file(self, sheet, line, message):
        page = sheet()
        page.drop("votes.jsonl", f"{vote_line(GROUPS[0].keys[1], 'keep')}\n{line}\n")
        said = f"line 2: {message}" if message != "SECOND" else 'line 3: a second image is the best for "a fox"'
        assert page.says(f"votes.jsonl, {said}. Nothing was loaded.") and page.pressed() == []

    @pytest.mark.parametrize("level", ["group", "image"])
    @pytest.mark.parametrize("conditions", [["human"], ["hpsv2", "human>0"]])
    def test_a_filter_by_votes(self, sheet, run_dir, tmp_path, capsys, level, conditions):
        """The page says, as votes are given, what the filter says of them."""
        (tmp_path / "none.jsonl").touch()
        options = ["--filter_level", level, "--filter_rewards", *conditions]
        page = sheet(*options, "--votes", tmp_path / "none.jsonl")
        assert page.all("figure.kept") == []
        votes = [(0, 1, "keep"), (0, 2, "best"), (1, 1, "keep"), (2, 0, "keep"), (2, 2, "best"), (3, 1, "veto")]
        page.drop("v.jsonl", "\n".join(vote_line(GROUPS[i].keys[j], vote) for i, j, vote in votes))
        assert page.says("Loaded 6 votes of v.jsonl")
        kept = [node.find_element("css selector", "figcaption > span").text for node in page.all("figure.kept")]
        path = page.save()
        shutil.copytree(run_dir / "run", tmp_path / "run")
        save_groups(GROUPS[:4], tmp_path / "run" / "prompts" / "groups.jsonl")
        assert craft("filter", run_dir, "--output_dir", tmp_path / "run", *options, "--votes", path) == 0
        from datasets import load_from_disk

        dataset = load_from_disk(str(tmp_path / "run" / "dataset"))
        assert dataset["train"]["expanded_prompt"][:] == kept
        assert dataset["candidates"]["human"][:] == [0, 1, 2, 0, 1, 0, 1, 0, 2, 0, -1, None]
        alone = [] if level == "group" else [f"{GROUPS[1].prompt}, sharp", "an owl, detailed"]
        assert kept == ["a fox, sharp", "a fox, detailed", *alone]

    def test_on_a_phone(self, sheet, browser):
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        try:
            page = sheet()
            assert browser.execute_script("return document.documentElement.scrollWidth") == 390
            page.all("footer, .group")[-1].find_element("css selector", "img").click()
            assert "1 vetoed" in page.status()
            browser.execute_script("window.scrollTo(0, 1e6)")
            save = browser.execute_script("return document.getElementById('save').getBoundingClientRect().toJSON()")
            assert 0 <= save["top"] < 120 and save["right"] <= 390  # in reach wherever the page is
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def test_five_thousand_images_are_not_drawn_at_once(self, browser, tmp_path):
        """Of a thousand prompts those near the window have pictures; the rest get theirs when they come near."""
        scores = {"hpsv2": np.arange(5.0), "aesthetic": np.arange(5.0)}
        variants = [[f"prompt {i}, manner {j}" for j in range(4)] for i in range(1000)]
        groups = make_groups([f"prompt {i}" for i in range(1000)], variants)
        pool = CandidatePool(tmp_path, ["hpsv2", "aesthetic"])
        images = [PILImage.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green", "white", "black")]
        pool.append(
            [key for group in groups for key in group.keys],
            images * 1000,
            {n: np.tile(v, 1000) for n, v in scores.items()},
        )
        from craft_trl.candidates.filter_config import FilterConfig
        from craft_trl.filtering.sheet import write_sheet

        assert write_sheet(tmp_path / "s.html", groups, pool, FilterConfig())["images"] == 5000
        browser.get((tmp_path / "s.html").as_uri())
        wait_for(browser)
        page = Page(browser)
        assert len(page.all(".group")) == 1000 and 0 < len(page.all("figure")) < 400
        assert "4000 of 5000 images kept, of 1000 prompts" in page.status()
        browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
        deadline = time.monotonic() + 20
        while "prompt 999" not in page.prompts() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "prompt 999" in page.prompts() and len(page.all("figure")) < 800
        # A vote on what has never been drawn, for all of 1,000 prompts from a file, and by a key on the last one.
        page.drop("v.jsonl", "\n".join(vote_line(group.keys[1], "best") for group in groups))
        assert page.says("Loaded 1000 votes of v.jsonl") and len(page.all("figure")) < 800
        page.all(".group")[-1].find_elements("css selector", "button.best")[2].click()
        assert "0 vetoed, 1000 best" in page.status()
        lines = page.save().read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1000 and lines[-1] == vote_line(groups[-1].keys[2], "best")
