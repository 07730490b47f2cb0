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

"""Candidates: the loop that draws, scores and stores the images of groups of prompts, rejecting as early as it can."""

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from PIL import Image

from ..progress import progress_bar
from ..rewards import Reward, lower_is_better
from .groups import Group
from .pool import CandidatePool, Key
from .rejection import needed, passes
from .storing import Storing
from .turns import Turns


Generate = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]


def generate_candidates(
    pool: CandidatePool,
    groups: Sequence[Group],
    generate: Generate,
    rewards: dict[str, Reward],
    batch_size: int = 16,
    reject_on: Sequence[str] | None = None,
    target_groups: int | None = None,
    draw_ahead: bool = False,
    turns: Turns | None = None,
    show_progress: bool = True,
    task: tuple[int, int] | None = None,
    description: str = "Candidates",
) -> None:
    """
    Make, score and store every image of the groups that the filter will ask for.

    With early rejection a group gets its original and first variant, then one variant more as long as all so far beat
    the original: under the per-group rule the rest could not change the outcome. Rows that are in the pool already are
    not made again, so an interrupted call is repeated to go on. On a GPU each batch is scored and written while the
    next one is drawn.

    Several processes of one machine may work on one pool at the same time: a group belongs to the process that claims it
    first, and the groups of a process that ended are taken over by the others at their end, or by the next call. Machines
    have tasks instead, which share the groups out beforehand.

    Args:
        pool ([`CandidatePool`]):
            Where the rows go.
        groups (`Sequence[Group]`):
            Prompts with variants and seeds.
        generate (`Callable[[Sequence[str], Sequence[int]], list[PIL.Image.Image]]`):
            Prompts and seeds to images, such as an [`ImageGenerator`].
        rewards (`dict[str, Reward]`):
            Scorers by column name.
        batch_size (`int`, *optional*, defaults to `16`):
            Images per step of the loop. Batches stay full: new groups join as others are done.
        reject_on (`Sequence[str]`, *optional*):
            Rewards on which a variant must beat its original for its group to go on. Defaults to no early rejection.
        target_groups (`int`, *optional*):
            Stop as soon as this many groups have passed, counted in the order of `groups`; needs `reject_on`. Groups
            that were begun in the meantime may leave rows behind the last one, which [`up_to_target`] leaves out.
        draw_ahead (`bool`, *optional*, defaults to `False`):
            Fill up batches that the work at hand does not fill, which come at the end, with images that living groups
            will need if they go on. They are kept in memory, and stored only if they are. It saves time where a batch
            costs the same however full it is, as with an [`ImageGenerator`].
        turns ([`Turns`], *optional*):
            How pipeline and rewards take turns on a GPU that does not hold both: some batches are drawn, then scored.
        show_progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        task (`tuple[int, int]`, *optional*):
            Number of this task, from 0, and how many there are: of the groups, every so many-th is this task's, and nothing
            is claimed. Defaults to sharing all groups with whoever claims them.
        description (`str`, *optional*, defaults to `"Candidates"`):
            What the progress bar says.
    """
    if target_groups is not None and reject_on is None:
        raise ValueError("target_groups counts the groups that pass on the rewards of reject_on: give both.")
    pool.orient(lower_is_better(rewards))
    work = _Work(pool, groups, batch_size, reject_on, target_groups, task)
    ahead: dict[Key, Image.Image] = {}
    with (
        Storing(pool, rewards, batch_size, turns) as storing,
        progress_bar(total=len(work.waiting), unit="group", desc=description, disable=not show_progress) as bar,
    ):
        try:
            while True:
                work.fill()
                # What to draw last depends on what comes of the batch before.
                if storing.due or len(work.ready) < batch_size and storing.busy:
                    work.stored(storing.wait())
                    continue
                if not work.ready and not work.take_over():
                    break
                keys = work.next_batch(ahead)
                new = [key for key in keys if key not in ahead]
                more = work.coming(batch_size - len(new), ahead) if draw_ahead and new else []
                if new:
                    _, texts, seeds = zip(*new, *more, strict=True)
                    ahead.update(zip([*new, *more], generate(texts, seeds), strict=True))
                if storing.at_work:
                    work.stored(storing.wait())
                storing.start(keys, [ahead.pop(key) for key in keys])
                bar.update(work.done - bar.n)
                bar.set_postfix(images=len(pool), refresh=False)
            bar.update(work.done - bar.n)
        finally:
            pool.release()


def fill_pool(
    pool: CandidatePool,
    keys: Sequence[Key],
    generate: Generate,
    rewards: dict[str, Reward],
    batch_size: int,
    description: str = "Images",
    turns: Turns | None = None,
) -> None:
    """Make, score and store those of the images that are not in the pool, in their order."""
    missing = [key for key in keys if key not in pool]
    with (
        Storing(pool, rewards, batch_size, turns) as storing,
        progress_bar(total=len(keys), initial=len(keys) - len(missing), unit="image", desc=description) as bar,
    ):
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            _, texts, seeds = zip(*batch, strict=True)
            images = generate(texts, seeds)
            if storing.at_work:
                bar.update(len(storing.wait()))
            storing.start(batch, images)
            if storing.due:
                bar.update(len(storing.wait()))
        if storing.busy:
            bar.update(len(storing.wait()))


class _Work:
    """Which images a process makes next."""

    def __init__(
        self,
        pool: CandidatePool,
        groups: Sequence[Group],
        batch_size: int,
        reject_on: Sequence[str] | None,
        target_groups: int | None,
        task: tuple[int, int] | None,
    ):
        self.pool, self.groups, self.batch_size = pool, groups, batch_size
        self.reject_on, self.target_groups, self.task = reject_on, target_groups, task
        number, tasks = task or (0, 1)
        self.waiting: deque[int] = deque(range(number, len(groups), tasks))
        self.elsewhere: list[int] = []  # claimed by other processes
        self.ready: deque[tuple[int, Key]] = deque()
        self.begun: dict[Key, int] = {}  # ready or being made, with the number of its group
        self.outstanding: Counter[int] = Counter()
        self.passed: list[int] = []  # sorted
        self.done = 0
        if target_groups is not None:
            self.group_of = {key: i for i, group in enumerate(groups) for key in group.keys}
            self._note_passed(range(len(groups)))

    @property
    def limit(self) -> int:
        """Groups from here on make no difference: enough have passed before them."""
        if self.target_groups is None or len(self.passed) < self.target_groups:
            return len(self.groups)
        return self.passed[self.target_groups - 1] + 1

    def fill(self) -> None:
        """Claim groups until there is a batch of work."""
        while len(self.ready) < self.batch_size:
            claimed = []
            while self.waiting and len(claimed) * 2 < self.batch_size - len(self.ready):
                i = self.waiting.popleft()
                if i >= self.limit:
                    self.waiting.clear()
                elif not needed(self.pool, self.groups[i], self.reject_on):
                    self.done += 1
                elif self.task is not None or self.pool.claim(self.groups[i].keys[0]):
                    claimed.append(i)
                else:
                    self.elsewhere.append(i)
            if not claimed:
                return
            self._refresh()  # whoever had a group before may have made some of it
            for i in claimed:
                self._enqueue(i, first=False)

    def take_over(self) -> bool:
        """Claim groups of processes that have ended; whether there was work among them."""
        self._refresh()
        self.waiting, self.elsewhere = deque(self.elsewhere), []
        self.fill()
        return bool(self.ready)

    def next_batch(self, drawn: Iterable[Key]) -> list[Key]:
        """The first of what is ready: as many images as a batch holds, and those that are drawn already besides."""
        batch, new = [], 0
        while self.ready and (self.ready[0][1] in drawn or new < self.batch_size):
            _, key = self.ready.popleft()
            new += key not in drawn
            batch.append(key)
        return batch

    def coming(self, number: int, drawn: Iterable[Key]) -> list[Key]:
        """Images that groups at work may need later, the nearest first."""
        variants = [
            (variant, i, key)
            for i in dict.fromkeys(self.begun.values())
            for variant, key in enumerate(self.groups[i].keys)
            if key not in self.pool and key not in self.begun and key not in drawn
        ]
        return [key for _, _, key in sorted(variants)[:number]]

    def stored(self, keys: Sequence[Key]) -> None:
        """Take note that these are in the pool."""
        touched = [self.begun.pop(key) for key in keys]
        self.outstanding.subtract(touched)
        if self.target_groups is not None:
            self._refresh()
            self._note_passed(set(touched))
        # Groups with all their images made go on before new ones begin.
        for i in reversed(dict.fromkeys(touched)):
            if not self.outstanding[i]:
                self._enqueue(i, first=True)

    def _enqueue(self, i: int, first: bool) -> None:
        items = [(i, key) for key in needed(self.pool, self.groups[i], self.reject_on)] if i < self.limit else []
        self.begun.update({key: i for _, key in items})
        self.outstanding[i] = len(items)
        self.ready.extendleft(reversed(items)) if first else self.ready.extend(items)
        self.done += not items

    def _refresh(self) -> None:
        if self.task is not None and self.target_groups is None:
            return  # nobody else makes what this task needs
        keys = self.pool.refresh()
        if self.target_groups is not None:
            self._note_passed({self.group_of[key] for key in keys if key in self.group_of})

    def _note_passed(self, numbers: Iterable[int]) -> None:
        for i in numbers:
            if i not in self.passed and passes(self.pool, self.groups[i], self.reject_on):
                insort(self.passed, i)
        for i, key in [item for item in self.ready if item[0] >= self.limit]:
            self.ready.remove((i, key))
            del self.begun[key]
