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

"""A blind comparison: the page in a real browser, what it hides, and what votes say."""

import base64
import io
import json
from collections import Counter

import pytest
from PIL import Image
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys

from craft_trl.cli.main import main
from craft_trl.errors import UsageError
from craft_trl.evaluation.blind import Evaluated, Pair, Vote, describe_tally, load_key, make_pairs, tally
from craft_trl.evaluation.config import EvaluationConfig
from craft_trl.evaluation.statistics import sign_test, wilson
from craft_trl.scripts import evaluate

from ..browser import drop, open_browser, open_forgetful, reload, wait_for
from ..models import tuned


MODELS = ("hidden-base", "hidden-tuned")


@pytest.fixture(scope="module")
def evaluation(tiny, tmp_path_factory):
    """A finished evaluation of two models that draw different images, and of the base on expanded prompts."""
    folder = tmp_path_factory.mktemp("evaluation")
    model = tuned(tiny / "pipeline", folder / "model")
    config = EvaluationConfig(
        models=[f"{MODELS[0]}={tiny / 'pipeline'}", f"{MODELS[1]}={model}"],
        templates=["{prompt}, sharp"],
        prompts=str(tiny / "prompts" / "tiny-hpd-test.jsonl"),
        num_prompts=10,
        num_inference_steps=1,
        guidance_scale=1.0,
        height=64,
        width=64,
        rewards=[f"aesthetic={tiny / 'rewards' / 'aesthetic'}"],
        output_dir=str(folder / "out"),
    )
    evaluate.main(config)
    return folder / "out"


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    """Folder of a page of it."""
    folder = tmp_path_factory.mktemp("blind") / "page"
    assert main(["blind", str(evaluation), "--output_dir", str(folder), "--repeat", "0.2"]) == 0
    return folder


class TestStatistics:
    @pytest.mark.parametrize(
        ("wins", "n", "low", "high"),
        [
            (8, 10, 0.490162, 0.943318),
            (60, 100, 0.502003, 0.690599),
            (0, 10, 0, 0.277533),
            (10, 10, 0.722467, 1),
            (1, 1, 0.206549, 1),
            (120, 200, 0.530837, 0.665394),
            (55.5, 100, 0.457359, 0.648572),
        ],
    )
    def test_wilson(self, wins, n, low, high):
        assert wilson(wins / n, n) == pytest.approx((low, high), abs=1e-6)

    @pytest.mark.parametrize(
        ("wins", "losses", "p"), [(8, 2, 0.109375), (60, 40, 0.056888), (10, 0, 0.001953), (3, 3, 1), (0, 0, 1)]
    )
    def test_sign_test(self, wins, losses, p):
        assert sign_test(wins, losses) == sign_test(losses, wins) == pytest.approx(p, abs=1e-6)


def votes_of(words, models=MODELS, session="a", prompts=None):
    """Votes on pairs that have the second model on the left, and on the right, by turns: `w`on, `l`ost or `t`ie."""
    votes = []
    for i, word in enumerate(words):
        prompt = f"prompt {i if prompts is None else prompts[i]}"
        left, right = models[::-1] if i % 2 else models
        side = "tie" if word == "t" else "left" if (word == "w") == (left == models[1]) else "right"
        votes.append(Vote(Pair(str(i), prompt, i, left, right), side, session))
    return votes


class TestTally:
    def test_a_vote_for_each_prompt(self):
        found = tally(votes_of("wwwwwwwwll"), MODELS)
        assert (found["win_rate"], found["interval"], found["p_value"]) == (0.8, "wilson", 0.109375)
        assert (found["ci_low"], found["ci_high"]) == pytest.approx((0.490162, 0.943318), abs=1e-6)
        assert (found["wins"], found["ties"], found["losses"], found["people"]) == (8, 0, 2, 1)
        said = describe_tally(found)
        assert said.startswith(
            "hidden-tuned against hidden-base: 80.0% wins, ties counting half, 95 % interval 49.0% to 94.3%"
        )
        assert "People cannot be said to prefer hidden-tuned or hidden-base: p = 0.1094" in said and "184 more" in said

    def test_ties_count_half(self):
        found = tally(votes_of("wwwtl"), MODELS)
        assert found["win_rate"] == 0.7 and found["decided"] == 4 and found["p_value"] == 0.625
        assert "1 ties, 1 for hidden-base; without ties 75.0%" in describe_tally(found)
        assert tally(votes_of("tt"), MODELS)["left"] is None and tally(votes_of("tt"), MODELS)["p_value"] == 1

    def test_the_base_wins(self):
        said = describe_tally(tally(votes_of("l" * 12), MODELS))
        assert "0.0% wins" in said and "People prefer hidden-base: p = 0.0005" in said and "more." not in said

    def test_prompts_are_the_unit(self):
        """Five people who say the same of ten prompts are no fifty votes."""
        votes = [vote for who in "abcde" for vote in votes_of("wwwwwwwwll", session=who)]
        found = tally(votes, MODELS)
        assert (
            found["interval"] == "bootstrap"
            and found["prompts"] == 10
            and found["votes"] == 50
            and found["people"] == 5
        )
        assert found["win_rate"] == pytest.approx(0.8) and found["p_value"] == 0.109375
        assert found["ci_low"] == pytest.approx(0.5, abs=0.11) and found["ci_high"] == pytest.approx(1, abs=0.01)
        # Two images of a prompt are one prompt too.
        found = tally(votes_of("wlww", prompts=[0, 0, 1, 1]), MODELS)
        assert found["win_rate"] == 0.75 and found["prompts"] == 2 and found["decided"] == 1
        # Where all prompts say the same, there is nothing to resample.
        found = tally(votes_of("wwww", prompts=[0, 0, 1, 1]), MODELS)
        assert found["interval"] == "wilson" and found["ci_low"] == pytest.approx(wilson(1, 2)[0])

    def test_sides_and_pairs_shown_again(self):
        votes = votes_of("wlwl")  # the right picture each time
        assert {vote.word for vote in votes} == {"right"}
        again = [
            Vote(Pair("r0", "prompt 0", 0, *MODELS[::-1], "0"), "left", "a"),  # the same picture
            Vote(Pair("r1", "prompt 1", 1, *MODELS, "1"), "right", "a"),  # the other one
            Vote(Pair("r2", "prompt 2", 2, *MODELS[::-1], "2"), "left", "b"),  # who did not see it before
        ]
        found = tally(votes + again, MODELS)
        assert (
            (found["again"], found["agreed"]) == (2, 1)
            and found["votes"] == 4
            and found["left"] == pytest.approx(2 / 7)
        )
        one_sided = describe_tally(tally(votes_of("wl" * 10), MODELS))
        assert "The left picture won 0.0% (0.0% to 16.1%): the side matters to whoever votes" in one_sided


class TestPage:
    def test_what_is_drawn(self, evaluation):
        evaluated = Evaluated(evaluation)
        pairs = make_pairs(evaluated, MODELS, repeat=0.2)
        first, again = pairs[:10], pairs[10:]
        assert Counter(pair.left for pair in first) == {MODELS[0]: 5, MODELS[1]: 5}  # balanced
        assert len({pair.id for pair in pairs}) == 12 and len({pair.prompt for pair in first}) == 10
        by_id = {pair.id: pair for pair in first}
        for pair in again:
            shown = by_id[pair.repeats]
            assert (pair.prompt, pair.seed, pair.left, pair.right) == (
                shown.prompt,
                shown.seed,
                shown.right,
                shown.left,
            )
        assert pairs == make_pairs(evaluated, MODELS, repeat=0.2)
        other = make_pairs(evaluated, MODELS, seed=1)
        assert [pair.prompt for pair in other] != [pair.prompt for pair in first]
        assert len(make_pairs(evaluated, MODELS, num_pairs=3, repeat=0)) == 3

    def test_pictures_are_those_of_the_models(self, page, evaluation):
        evaluated, text = Evaluated(evaluation), (page / "blind.html").read_text(encoding="utf-8")
        keys = {model: {key[0]: key for key in evaluated.keys(model)} for model in MODELS}
        pools = {model: evaluated.pool(model) for model in MODELS}
        for pair in load_key(page)["pairs"].values():
            for side in ("left", "right"):
                data = text.split(f'id="{pair.id}-{side}">')[1].split("<")[0]
                with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
                    assert (
                        shown.size == (64, 64) and shown.format == "WEBP" and not shown.info.keys() & {"exif", "xmp"}
                    )
                    pixels = shown.convert("RGB").tobytes()
                distance = {}
                for model in MODELS:
                    with Image.open(io.BytesIO(next(pools[model].images([keys[model][pair.prompt]])))) as drawn:
                        distance[model] = sum(
                            abs(a - b) for a, b in zip(drawn.convert("RGB").tobytes(), pixels, strict=True)
                        )
                assert min(distance, key=distance.get) == getattr(pair, side)

    def test_what_is_hidden(self, page, evaluation):
        """Nothing on the page tells the models: no name, no hash of one, no path, and not what sides are drawn by."""
        text = (page / "blind.html").read_text(encoding="utf-8")
        settings = Evaluated(evaluation).settings
        told = [*MODELS, "expansion", evaluation.name + "/", str(page), *settings["models"].values()]
        assert [word for word in told if word in text] == []
        assert Evaluated(evaluation).fingerprint[:12] not in text

    def test_said(self, evaluation, tmp_path, capsys):
        arguments = ["blind", str(evaluation), "--output_dir", str(tmp_path / "page"), "--num_pairs", "4"]
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith("[blind] 4 pairs, 0.0 MB: ")
        assert main(arguments) == 0 and "done before: 4 pairs" in capsys.readouterr().out
        assert main([*arguments, "--models", "hidden-base+expansion", "hidden-tuned"]) == 0
        said = capsys.readouterr().out
        assert "models.0 was hidden-base" in said or "models was" in said
        assert "set aside" in said and load_key(tmp_path / "page")["models"] == [
            "hidden-base+expansion",
            "hidden-tuned",
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["EVALUATION"], "output_dir is missing: give it as --output_dir, or count votes by --votes"),
            (["EVALUATION", "x", "--output_dir", "o"], "craft blind takes one folder, got"),
            (["x", "--output_dir", "o"], "x is not the folder of an evaluation: `craft evaluate` makes one"),
            (
                ["EVALUATION", "--output_dir", "o", "--models", "craft", "hidden-base"],
                "has no craft. It has hidden-base, hid",
            ),
            (["EVALUATION", "--output_dir", "o", "--models", "hidden-base"], "models must be two different ones of"),
            (["EVALUATION", "--output_dir", "o", "--num_pairs", "0"], "num_pairs must be at least 1, got 0"),
            (["EVALUATION", "--output_dir", "o", "--repeat", "2"], "repeat must be from 0 to 1, got 2"),
            (["EVALUATION", "--votes", "v.jsonl"], "is not the folder of a blind comparison"),
            (["PAGE", "--votes", "v.jsonl"], "Cannot read the votes v.jsonl: No such file"),
            (["PAGE", "--votes", "empty.jsonl"], "empty.jsonl: there are no votes"),
            (["PAGE", "--votes", "v.jsonl", "--seed", "2"], "seed makes a page, and votes count those of one"),
        ],
    )
    def test_mistakes(self, evaluation, page, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.jsonl").touch()
        named = {"EVALUATION": str(evaluation), "PAGE": str(page)}
        assert main(["blind", *(named.get(word, word) for word in arguments)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1 and not (tmp_path / "o").exists()


class TestVotes:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("{", "line 2: not a vote"),
            ({"session": 3}, "line 2: not a vote, it needs the texts page, pair, vote, session"),
            ({"vote": "both"}, "line 2: vote must be one of left, right, tie, got 'both'"),
            ({"page": "abc"}, "line 2: a vote of another page, 'abc'; this one is "),
            ({"pair": "abc"}, "line 2: the page has no pair 'abc'"),
            ({}, "line 2: a second vote on the pair"),
            ({"expanded_prompt": "a"}, "line 2: a vote of a contact sheet, which `craft filter` takes"),
        ],
    )
    def test_mistakes(self, page, tmp_path, capsys, change, message):
        key = load_key(page)
        vote = {"page": key["page"], "pair": next(iter(key["pairs"])), "vote": "left", "session": "a"}
        line = change if isinstance(change, str) else json.dumps(vote | change)
        (tmp_path / "v.jsonl").write_text(f"{json.dumps(vote)}\n{line}\n")
        assert main(["blind", str(page), "--votes", str(tmp_path / "v.jsonl")]) == 2
        err = capsys.readouterr().err
        assert f"v.jsonl, {message}" in err and err.count("\n") == 1 and not (page / "tally.json").exists()

    def test_a_sheet_says_what_they_are(self, page, tmp_path):
        from craft_trl.filtering.votes import load_votes

        (tmp_path / "v.jsonl").write_text('{"page": "p", "pair": "q", "vote": "left", "session": "a"}\n')
        with pytest.raises(UsageError, match="line 1: a vote of a blind comparison, which `craft blind` counts"):
            load_votes(tmp_path / "v.jsonl", {})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


class Voter:
    """Whoever sits before the page."""

    def __init__(self, browser, page):
        self.browser = browser
        open_forgetful(browser, page / "blind.html")

    def status(self):
        return self.browser.find_element("id", "status").text

    def shown(self):
        """Number of the pair that is ready."""
        return int(self.browser.execute_script("return document.body.dataset.shown ?? -1"))

    def wait(self, is_true):
        wait_for(self.browser, is_true)

    def press(self, *keys):
        """Keys, each when the pair before has gone."""
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def vote(self, key):
        at = self.shown()
        self.press(key)
        self.wait(lambda: self.shown() == at + 1)

    def save(self):
        path = self.browser.downloads / "blind_votes.jsonl"
        path.unlink(missing_ok=True)
        self.press("s")
        self.wait(path.exists)
        return path


class TestBrowser:
    def test_by_keys_and_mouse(self, page, browser, tmp_path, capsys):
        """Whoever always finds the tuned model better: by keys, by buttons and by clicks on the picture."""
        key, voter = load_key(page), Voter(browser, page)
        pairs = list(key["pairs"].values())
        voter.wait(lambda: voter.shown() == 0)
        assert browser.find_element("id", "prompt").text == pairs[0].prompt
        assert len(browser.find_elements("css selector", "#pair img")) == 2
        sides = ["left" if pair.left == MODELS[1] else "right" for pair in pairs]
        arrows = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT}
        voter.vote(arrows[sides[0]])
        browser.find_element("id", sides[1]).click()
        voter.wait(lambda: voter.shown() == 2)
        browser.find_element("id", "vote-tie").click()
        voter.wait(lambda: voter.shown() == 3)
        assert voter.status() == "pair 4 of 12 \u00b7 3 voted"
        voter.press(Keys.ARROW_UP)
        voter.wait(lambda: voter.shown() == 2)
        assert browser.find_element("id", "vote-tie").get_attribute("aria-pressed") == "true"
        voter.vote(Keys.ARROW_DOWN)  # as before: of a pair there is one vote
        reload(browser)
        voter.wait(lambda: voter.shown() == 3)
        for at, side in enumerate(sides[3:11], 4):
            voter.vote(arrows[side])
            reload(browser)  # nothing is lost
            voter.wait(lambda at=at: voter.shown() == at)
        voter.press(arrows[sides[11]])
        voter.wait(lambda: "all have a vote: save" in voter.status())
        path = voter.save()
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["pair"] for row in rows] == [pair.id for pair in pairs]
        assert [row["vote"] for row in rows] == [*sides[:2], "tie", *sides[3:]]
        assert len({row["session"] for row in rows}) == 1 and all(row["milliseconds"] >= 0 for row in rows)
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []

        capsys.readouterr()
        assert main(["blind", str(page), "--votes", str(path)]) == 0
        said = capsys.readouterr().out
        assert (
            "hidden-tuned against hidden-base: 95.0% wins" in said and "People prefer hidden-tuned: p = 0.0039" in said
        )
        found = json.loads((page / "tally.json").read_text())
        assert (found["wins"], found["ties"], found["losses"], found["again"]) == (9, 1, 0, 2)
        (page / "tally.json").unlink()

    def test_what_a_held_key_does(self, page, browser):
        """One vote, however long it is held: each pair is seen before it is voted on."""
        voter = Voter(browser, page)
        voter.wait(lambda: voter.shown() == 0)
        browser.execute_script(
            "for (let i = 0; i < 5; i++) document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', repeat: i > 0}))"
        )
        voter.wait(lambda: voter.shown() == 1)
        assert "1 voted" in voter.status()

    def test_where_a_file_remembers_nothing(self, page, browser):
        forbid = (
            "Object.defineProperty(window, 'indexedDB', {get() { throw new DOMException('no', 'SecurityError'); }})"
        )
        voter = Voter(browser, page)
        script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": forbid})
        try:
            reload(browser)
            voter.wait(lambda: voter.shown() == 0)
            voter.vote(Keys.ARROW_LEFT)
            assert len(voter.save().read_text().splitlines()) == 1
            reload(browser)
            voter.wait(lambda: voter.shown() == 0)
        finally:
            browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)

    def test_going_on_elsewhere(self, page, browser, tmp_path):
        voter = Voter(browser, page)
        voter.wait(lambda: voter.shown() == 0)
        voter.vote(Keys.ARROW_LEFT)
        voter.vote(Keys.ARROW_DOWN)
        path = voter.save()
        text = path.read_text()
        (tmp_path / "mine.jsonl").write_text(text)
        voter = Voter(browser, page)
        voter.wait(lambda: voter.shown() == 0)
        browser.find_element("id", "file").send_keys(str(tmp_path / "mine.jsonl"))
        voter.wait(lambda: voter.status() == "Loaded 2 votes of mine.jsonl")
        assert voter.shown() == 2
        rows = [json.loads(line) for line in voter.save().read_text().splitlines()]
        assert [row["vote"] for row in rows] == ["left", "tie"]
        pair = json.loads(text.splitlines()[0])
        for line, said in (
            ("{", "not JSON"),
            (json.dumps(pair | {"page": "p"}), "a vote of another page"),
            (json.dumps(pair | {"pair": "p"}), 'this page has no pair "p"'),
            (json.dumps(pair | {"vote": "x"}), 'vote must be one of left, right, tie, got "x"'),
            ('{"prompt": "a"}', "not a vote, it needs page, pair, vote, session"),
            (json.dumps(pair), f'a second vote on the pair "{pair["pair"]}"'),
        ):
            drop(browser, "v.jsonl", f"{text.splitlines()[0]}\n{line}\n")
            voter.wait(lambda said=said: voter.status() == f"v.jsonl, line 2: {said}. Nothing was loaded.")
