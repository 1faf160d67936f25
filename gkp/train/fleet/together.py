"""Several trainings at once on one device: the epochs of all in step, saved and continued one by one.

A single small network leaves most of a GPU idle: its kernels are too short. Here each has a stream, and one
thread launches the steps of all in turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from weakref import WeakValueDictionary

import torch

from gkp.data import Split
from gkp.train.checks import check
from gkp.train.fleet import saved
from gkp.train.fleet.lane import Lane
from gkp.train.fleet.member import Images, Member
from gkp.train.fleet.recording import wait
from gkp.train.history import EpochRow, History
from gkp.train.losses import prepared
from gkp.train.rounded import reproducible
from gkp.utils.progress import Progress, Task

MOST = 16  # lanes that are tried
TIMED_STEPS = 20
MEMORY_SHARE = 0.8  # of the device's free memory, for lanes
WORTH = 0.97  # more lanes must bring the time per step and network below this share

Result = History | RuntimeError | None  # None: stopped before its last epoch


def train_together(
    members: Sequence[Member],
    *,
    device: torch.device | str = "cpu",
    side_by_side: int | None = None,
    save_epochs: int = 5,
    progress: Progress | None = None,
    after_epoch: Callable[[], bool] | None = None,
) -> list[Result]:
    """Train all members as `gkp.train.fine_tune` would one after the other; their models end in eval mode.

    On a GPU every step is one CUDA graph. The networks need not be alike, nor their recipes or seeds; those
    pruned from one `start` share its shape. Scores after an epoch are computed in the recipe's precision.
    side_by_side: how many at once; by default one on a CPU, on a GPU what memory allows and a short
    measurement finds fastest. save_epochs: after so many epochs, and at the end, a state is saved, from which
    the same call continues. after_epoch: called when an epoch of all is done; where it returns True all
    states are saved and training ends.

    Returns one `Result` per member; a RuntimeError is that of a loss that stopped being finite. Raises
    ValueError for a member that has to be trained alone (`Member.why_alone`) and for unusable data or
    networks, StateError for a state file that is damaged or of another run, OSError when a state cannot be
    written.
    """
    if side_by_side is not None and side_by_side < 1:
        raise ValueError(f"side_by_side={side_by_side}: give 1 or more")
    if save_epochs < 1:
        raise ValueError(f"save_epochs={save_epochs}: give 1 or more")
    if len({id(member.model) for member in members}) < len(members):
        raise ValueError("two members train the same network: give each a copy of its own (copy.deepcopy)")
    ready = [_ready(member) for member in members]
    fleet = _Fleet(ready, torch.device(device), save_epochs)
    total = sum(m.recipe.epochs for m in ready)
    with (progress or Progress("off")).task("train together", total, done=fleet.epochs_saved()) as task:
        fleet.run(side_by_side, task, after_epoch or (lambda: False))
    return fleet.results


def _ready(member: Member) -> Member:
    """The member with a copy of its teacher, so that nothing changes that; ValueError for what cannot be."""
    check(member.model, {"training": member.train, **member.held})
    if reason := member.why_alone():
        raise ValueError(f"{member.title} cannot be trained in a fleet: {reason}; use gkp.train.fine_tune")
    teacher = prepared(member.model, member.teacher, member.recipe, member.hooks, member.train)
    return replace(member, teacher=teacher)


class _Fleet:
    """Members that wait, members in lanes, and results."""

    def __init__(self, members: Sequence[Member], device: torch.device, save_epochs: int) -> None:
        self.members, self.device, self.save_epochs = members, device, save_epochs
        self.identities = [member.identity() for member in members]
        self.results: list[Result] = [None] * len(members)
        self.waiting, self.lanes = deque(range(len(members))), dict[int, Lane]()
        self.on_device: dict[str, Split] = {}
        self.images: WeakValueDictionary[tuple, Images] = WeakValueDictionary()
        self.round = 0  # epochs of all lanes so far

    def epochs_saved(self) -> int:
        """Epochs that state files hold."""
        return sum(m.epochs_saved(about) for m, about in zip(self.members, self.identities, strict=True))

    def run(self, side_by_side: int | None, task: Task, stop: Callable[[], bool]) -> None:
        if side_by_side is None:
            side_by_side = self._fastest() if self.device.type == "cuda" else 1
        while self.waiting or self.lanes:
            while self.waiting and len(self.lanes) < side_by_side:
                self._open(self.waiting.popleft())
            self._close([i for i, lane in self.lanes.items() if lane.done])
            if not self.lanes:
                continue
            rows = self._epoch()
            task.advance(len(rows))
            task.say(_line(rows, list(self.lanes.values())))
            due = {i for i, lane in self.lanes.items() if lane.done or lane.epoch % self.save_epochs == 0}
            self._save(due)
            if stop():
                self._save(self.lanes.keys() - due)
                self._close([i for i, lane in self.lanes.items() if lane.done])
                return

    def _save(self, which: Iterable[int]) -> None:
        for i in which:
            saved.save(self.lanes[i], self.identities[i])

    def _open(self, i: int) -> None:
        """A lane for member i, with its saved state and its recordings."""
        member = self.members[i]
        held = {part: self._moved(split) for part, split in member.held.items()}
        lane = Lane(member, held, self.device)
        saved.restore(lane, self.identities[i])
        lane.images = self._images(lane)
        if not lane.epoch:
            saved.save(lane, self.identities[i])  # shows now whether the place can be written
        if not lane.done:
            with self._reproducible(lane):
                lane.record()
        self.lanes[i] = lane

    def _close(self, which: list[int]) -> None:
        for i in which:
            self.results[i] = self.lanes.pop(i).finish()

    def _epoch(self) -> list[EpochRow]:
        """One epoch of all lanes; those whose loss is no number any more are closed with their error."""
        started, lanes = time.perf_counter(), list(self.lanes.values())
        for lane in lanes:
            lane.begin()
        wait(self.device)
        with self._reproducible(lanes[0]):
            for step in range(max(lane.steps for lane in lanes)):
                for lane in lanes:
                    if step < lane.steps:
                        with lane.on_stream():
                            lane.advance(step)
            for lane in lanes:
                with lane.on_stream():
                    lane.evaluate()
        wait(self.device)
        self.round += 1
        seconds, rows = (time.perf_counter() - started) / len(lanes), []
        for i, lane in list(self.lanes.items()):
            lane.history.trainer = _words(lane, len(lanes))
            try:
                rows.append(lane.end(seconds))
            except RuntimeError as error:
                self.results[i] = error
                del self.lanes[i]
        return rows

    def _fastest(self) -> int:
        """Open lanes while there is memory, time some, and keep as many as are best per network."""
        free, _ = torch.cuda.mem_get_info(self.device)
        most = min(len(self.waiting), MOST)
        while self.waiting and len(self.lanes) < most:
            self._open(self.waiting.popleft())
            used = free - torch.cuda.mem_get_info(self.device)[0]
            most = min(most, max(1, int(MEMORY_SHARE * free * len(self.lanes) / max(used, 1))))
        open_lanes = [i for i, lane in self.lanes.items() if not lane.done]
        best, least = 1, float("inf")
        for n in (1, 2, 4, 6, 8, 12, 16):
            if n > len(open_lanes) and n // 2 >= len(open_lanes):
                break
            lanes = [self.lanes[i] for i in open_lanes[:n]]
            seconds = self._timed(lanes)
            if lanes and seconds / len(lanes) < WORTH * least:
                best, least = len(lanes), seconds / len(lanes)
        for i in open_lanes[best:]:
            self.waiting.appendleft(i)
            self.lanes.pop(i).finish()
        return best

    def _timed(self, lanes: list[Lane]) -> float:
        """Seconds of one step of all these lanes, of which nothing remains."""
        steps = min(TIMED_STEPS, *(lane.steps - 1 for lane in lanes))
        with ExitStack() as stack:
            for lane in lanes:
                stack.enter_context(lane.unchanged())
                lane.rewind()
            wait(self.device)
            started = time.perf_counter()
            for _ in range(steps):
                for lane in lanes:
                    with lane.on_stream():
                        lane.launch[f"train {lane.member.recipe.batch_size}"]()
            wait(self.device)
            return (time.perf_counter() - started) / max(steps, 1)

    def _images(self, lane: Lane) -> Images:
        """The images of lanes that see the same ones: of one seed, and in the same epoch, now and later."""
        member, recipe = lane.member, lane.member.recipe
        draws = recipe.adversarial.draws if recipe.adversarial else 0
        started = (draws, recipe.batch_size, lane.last) if draws else None
        key = member.train.fingerprint, member.seed, recipe.augment, recipe.padding, lane.epoch - self.round
        images = self.images.get((*key, started))  # gone when its last lane is
        if images is None:
            images = Images(self._moved(member.train), recipe, member.seed, lane.batches)
            self.images[*key, started] = images
        return images

    def _moved(self, split: Split) -> Split:
        """The split on the device, once."""
        if split.fingerprint not in self.on_device:
            self.on_device[split.fingerprint] = split.to(self.device)
        return self.on_device[split.fingerprint]

    def _reproducible(self, lane: Lane) -> AbstractContextManager[None]:
        return reproducible(self.device, lane.member.recipe.precision, lane.member.seed)


def _words(lane: Lane, number: int) -> str:
    """How a network was trained, for its record: beside how many others in its last epoch."""
    graph = ", one CUDA graph per step" if lane.stream is not None else ""
    precision = "bfloat16" if lane.half else "float32"
    return f"fleet: {number} networks side by side{graph}; scores per epoch in {precision}"


def _line(rows: Sequence[EpochRow], lanes: Sequence[Lane]) -> str:
    """What one epoch of all gave, in one line."""
    if not rows:
        return ""
    first, last = (f(row.epoch for row in rows) for f in (min, max))
    words = [f"epoch {first}" if first == last else f"epochs {first} to {last}", f"{len(rows)} networks"]
    ranges = {"loss": [row.train_loss for row in rows]}
    for part in rows[0].scores:
        ranges[f"{part} %"] = [100 * row.scores[part] for row in rows if part in row.scores]
    words += [f"{name} {min(values):.4g} to {max(values):.4g}" for name, values in ranges.items()]
    seconds, steps = sum(row.seconds for row in rows), sum(lane.steps for lane in lanes)
    return ", ".join(
        [*words, f"{seconds:.1f} s, {1000 * seconds / max(steps, 1):.2f} ms per step and network"]
    )
