"""One network of a fleet on its device: a step as one CUDA graph on a stream of its own, and its course."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gkp.data import Split
from gkp.train.augment import pixels
from gkp.train.checks import diverged, joins_last, placed
from gkp.train.fleet.flat import Flat
from gkp.train.fleet.member import Images, Member
from gkp.train.fleet.passes import Passes
from gkp.train.fleet.recording import Job, recorded, unchanged
from gkp.train.fleet.trial import COUNTER
from gkp.train.fleet.wide import State, alone, widened
from gkp.train.history import TITLES, Chosen, EpochRow, History
from gkp.train.hooks import Hooks, Step
from gkp.train.recipe import learning_rate

EVALUATION_BATCH = 1000  # images
PROVED_ON = 8  # images on which the wide network must compute what the narrow one does


@dataclass
class Best:
    """The epoch that has the best score so far, and what the network was then, on the device."""

    epoch: int
    accuracy: float
    values: Tensor
    statistics: Tensor


class Lane:
    """A member between two epochs, or in one. history: its rows, and the best weights as last saved."""

    images: Images

    def __init__(self, member: Member, held: dict[str, Split], device: torch.device) -> None:
        """held lies on the device; member.model goes there, and is changed in place; `images` come later."""
        recipe, n = member.recipe, len(member.train)
        self.member, self.held, self.device = member, held, device
        joined = joins_last(member.model, member.train, recipe.batch_size)
        self.steps = math.ceil(n / recipe.batch_size) - joined
        self.last = n - (self.steps - 1) * recipe.batch_size  # images of the last step
        self.initial = {name: t.detach().cpu().clone() for name, t in member.model.state_dict().items()}
        placed(member.model, device)
        # Hooks know the network by its own names and shapes.
        start = member.start if member.hooks == Hooks() else None
        example = member.train.pixels(slice(PROVED_ON)).to(device)
        self.wide = widened(member.model, start.to(device), example) if start else alone(member.model)
        self.model = self.wide.model
        self.half = recipe.precision == "bfloat16"
        self.flat = Flat(self.model, half=self.half, masks=self.wide.mask())
        teacher = None if member.teacher is None else member.teacher.to(device)
        self.passes = Passes(self.model, self.flat, recipe, teacher)
        _stop_counting(self.model)
        self.history, self.best = History(), dict[str, Best]()

        def scalar(dtype: torch.dtype = torch.float32, value: float = 0) -> Tensor:
            return torch.full((), value, dtype=dtype, device=device)

        self.places = torch.arange(max(recipe.batch_size, self.last), device=device)
        self.lrs = torch.zeros(self.steps, dtype=self.flat.values.dtype, device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)  # of the epoch, from 0
        self.total, self.finite = scalar(), scalar(torch.bool, True)
        self.first, self.correct = scalar(torch.long), {part: scalar(torch.long) for part in held}
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.launch: dict[str, Job] = {}

    # ---- what is recorded: the same operations every time ----------------------------------------------

    def _gradients(self, size: int) -> None:
        """Forward and backward on the next `size` images."""
        places, images = self.places[:size] + self.step * self.member.recipe.batch_size, self.images
        x, y = pixels(images.images.index_select(0, places)), images.labels.index_select(0, places)
        cross_entropy, loss, finite = self.passes.losses(x, y, images.starts.index_select(1, places))
        self.flat.take(torch.autograd.grad(loss, [self.flat.leaves[name] for name in self.flat.names]))
        self.total.add_(cross_entropy * size)
        self.finite.logical_and_(finite)

    def _update(self) -> None:
        self.flat.update(self.lrs.index_select(0, self.step), self.member.recipe)
        self.step.add_(1)

    def _whole(self, size: int) -> None:
        self._gradients(size)
        self._update()

    @torch.no_grad()
    def _count(self, part: str) -> None:
        """Count the correct ones among the next images of a held part."""
        split = self.held[part]
        places = torch.arange(min(EVALUATION_BATCH, len(split)), device=self.device) + self.first
        inside = places < len(split)
        places = places.clamp(max=len(split) - 1)
        predicted = self.passes.logits(pixels(split.images.index_select(0, places))).argmax(1)
        self.correct[part].add_(((predicted == split.labels.index_select(0, places)) & inside).sum())
        self.first.add_(EVALUATION_BATCH)

    # ---- recording -------------------------------------------------------------------------------------

    @property
    def hooked(self) -> bool:
        """Whether something of the method's stands between gradients and update, or after it."""
        return bool(self.member.hooks.before_step or self.member.hooks.after_step)

    def record(self) -> None:
        """Make what is launched in every step; on a GPU each launch replays one CUDA graph."""
        jobs: dict[str, Job] = {f"count {part}": partial(self._count, part) for part in self.held}
        for size in {self.size_of(0), self.last}:
            jobs[f"train {size}"] = partial(self._gradients if self.hooked else self._whole, size)
        if self.hooked:
            jobs["update"] = self._update
        if self.stream is None:
            self.launch = jobs
            return
        with self.unchanged(), torch.cuda.stream(self.stream):
            for name, job in jobs.items():
                self.model.train(not name.startswith("count"))
                self.launch[name] = recorded(job, self.rewind, self.stream)

    def rewind(self) -> None:
        self.step.zero_()
        self.first.zero_()

    def unchanged(self) -> AbstractContextManager[None]:
        """What runs inside leaves no trace in the training."""
        counters = [self.step, self.total, self.finite, self.first, *self.correct.values()]
        return unchanged([*self.flat.state(), *counters], self.flat.refresh, self.device)

    # ---- an epoch --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history.epochs)

    @property
    def done(self) -> bool:
        return self.epoch >= self.member.recipe.epochs

    def size_of(self, step: int) -> int:
        """Images of that step of an epoch."""
        return self.last if step == self.steps - 1 else self.member.recipe.batch_size

    @property
    def batches(self) -> list[slice]:
        """The images of each step, by their places in the epoch."""
        size = self.member.recipe.batch_size
        return [slice(step * size, step * size + self.size_of(step)) for step in range(self.steps)]

    def on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def begin(self) -> None:
        """Everything the next epoch needs, on the device."""
        self.images.load(self.epoch + 1)
        self.lrs.copy_(torch.tensor([self._lr(step) for step in range(self.steps)], dtype=torch.float64))
        for tensor in (self.step, self.total, *self.correct.values()):
            tensor.zero_()
        self.finite.fill_(True)
        self.model.train()

    def _lr(self, step: int) -> float:
        """The learning rate of that step of the next epoch."""
        return learning_rate(self.member.recipe, self.epoch * self.steps + step, self.steps)

    def advance(self, step: int) -> None:
        """Launch one step of the epoch; nothing waits."""
        hooks = self.member.hooks
        self.launch[f"train {self.size_of(step)}"]()
        if not self.hooked:
            return
        at = Step(self.epoch + 1, step, self._lr(step), self.member.recipe.epochs, self.steps)
        if hooks.before_step:
            hooks.before_step(self.model, at)
        self.launch["update"]()
        if hooks.after_step:
            hooks.after_step(self.model, at)
            self.flat.refresh()

    def evaluate(self) -> None:
        """After the last step: the method's hook, then count what is classified correctly."""
        if self.member.hooks.after_epoch:
            self.member.hooks.after_epoch(self.model, self.epoch + 1)
            self.flat.refresh()
        self.model.eval()
        for part, split in self.held.items():
            self.first.zero_()
            for _ in range(math.ceil(len(split) / EVALUATION_BATCH)):
                self.launch[f"count {part}"]()

    def end(self, seconds: float) -> EpochRow:
        """The row of the epoch, which it waits for; RuntimeError when the loss stopped being finite."""
        epoch, n = self.epoch + 1, len(self.member.train)
        if not self.finite:
            raise diverged(epoch, self.member.recipe)
        scores = {part: self.correct[part].item() / len(split) for part, split in self.held.items()}
        lr, loss = self._lr(self.steps - 1), self.total.item() / n
        row = EpochRow(epoch, lr, loss, scores.get("validation"), scores.get("test"), seconds)
        self.history.epochs.append(row)
        for part, score in scores.items():
            if score >= self._best_so_far(part):
                self.best[part] = Best(epoch, score, self.flat.values.clone(), self.flat.statistics.clone())
        return row

    def _best_so_far(self, part: str) -> float:
        earlier = self.history.chosen.get(part)
        return self.best[part].accuracy if part in self.best else earlier.accuracy if earlier else -1.0

    # ---- the network as it was given -------------------------------------------------------------------

    def weights(self, values: Tensor, statistics: Tensor, epoch: int) -> State:
        """The state_dict of the member's network with these parameters and statistics, on the CPU."""
        trained = self.wide.narrowed(self.flat.named(values) | self.flat.running.views(statistics))
        state = {}
        for name, before in self.initial.items():
            if name in trained:
                state[name] = trained[name].detach().to("cpu", copy=True).contiguous()
            else:
                state[name] = before + epoch * self.steps if name.endswith(COUNTER) else before
        return state

    def course(self) -> History:
        """The history with the weights that rules chose."""
        for part, best in self.best.items():
            weights = self.weights(best.values, best.statistics, best.epoch)
            self.history.chosen[part] = Chosen(TITLES[part], best.epoch, best.accuracy, weights)
        self.best.clear()
        return self.history

    def finish(self) -> History:
        """Give the member's network its last weights; nothing of it is shared with the lane afterwards."""
        last = self.weights(self.flat.values, self.flat.statistics, self.epoch)
        self.launch.clear()
        model = self.member.model
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and f"{name}.{COUNTER}" in last:
                module._buffers[COUNTER] = last[f"{name}.{COUNTER}"].to(self.device)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.data, tensor.grad = tensor.detach().clone(), None
        model.load_state_dict(last)
        model.eval()
        return self.course()


def _stop_counting(model: nn.Module) -> None:
    """Batch norms count batches, one kernel each in every step; their number is known without."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.num_batches_tracked = None
