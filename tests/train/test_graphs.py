"""Training with a recorded step ends where training without one ends; on a CPU with a stand-in for graphs."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_training import QUICK, TRAIN, VALIDATION, random_split, same_weights, small_net, without_seconds

from gkp import pruners
from gkp.attacks import Attack
from gkp.nets import models
from gkp.train import Hooks, fine_tune, loop
from gkp.train.graphs import Replayed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class StandIn(Replayed):
    """What a CUDA graph does, without a GPU: every replay writes into the tensors of the recording."""

    replays = 0

    def __init__(self, model, compute, x, y):
        super().__init__(model, compute, x, y, record=partial(self.record, model))

    @staticmethod
    def record(model, run):
        run()  # warms up
        outputs = run()
        parameters = list(model.parameters())
        gradients = [p.grad for p in parameters]

        def replay():
            StandIn.replays += 1
            for old, new in zip(outputs, run(), strict=True):
                old.copy_(new)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = None  # a graph does not touch what parameters point to

        return outputs, replay


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr(loop, "Replayed", StandIn)
    monkeypatch.setattr(loop, "GRAPH_DEVICES", ("cpu",))
    monkeypatch.setattr(StandIn, "replays", 0)


def trained(recipe=QUICK, **options):
    model = small_net()
    return model, fine_tune(model, TRAIN, recipe, validation=VALIDATION, **options)


def freezing():
    """Hooks that hold the first filters at zero, as methods that mask do."""

    def before_step(model, at):
        next(model[1].children()).weight.grad[:4] = 0

    def after_epoch(model, epoch):
        with torch.no_grad():
            next(model[1].children()).weight[:4] = 0

    return Hooks(before_step=before_step, after_epoch=after_epoch)


@pytest.mark.parametrize("hooks", [Hooks, freezing], ids=["plain", "masking"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_steps_train_to_the_same_weights(stand_in, hooks, precision):
    recipe = replace(QUICK, precision=precision)
    plain, history = trained(recipe, hooks=hooks())
    assert StandIn.replays == 0
    replayed, again = trained(recipe, hooks=hooks(), cuda_graphs=True)
    # 70 images in batches of 16: the last one of 6 is not replayed, and the next full one is again.
    assert StandIn.replays == 4 * QUICK.epochs
    assert same_weights(plain, replayed)
    assert without_seconds(history) == without_seconds(again)


def test_a_run_continued_with_replays_ends_the_same(stand_in, tmp_path: Path):
    whole, _ = trained()
    path = tmp_path / "state.pt"

    class Stop(Exception):
        pass

    def stop(model, epoch):
        if epoch == 3:
            raise Stop

    with pytest.raises(Stop):
        trained(state_path=path, cuda_graphs=True, hooks=Hooks(after_epoch=stop))
    assert same_weights(whole, trained(state_path=path, cuda_graphs=True)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": replace(QUICK, epochs=1, adversarial=Attack("fgsm", eps=4 / 255))},
        {"recipe": replace(QUICK, epochs=1), "hooks": Hooks(penalty=lambda model, epoch: None)},
        {
            "recipe": replace(QUICK, epochs=1),
            "hooks": Hooks(loss=lambda model, x, y, logits, epoch: F.cross_entropy(logits, y)),
        },
    ],
    ids=["attack", "penalty", "loss"],
)
def test_steps_that_change_are_not_replayed(stand_in, options):
    trained(cuda_graphs=True, **options)
    assert StandIn.replays == 0


def test_a_network_that_a_hook_watches_is_not_replayed(stand_in):
    """GAL's masks are such hooks; who only counts calls would miss them, too."""
    model, calls = small_net(), []
    model[1][3].register_forward_hook(lambda *_: calls.append(model.training))
    fine_tune(model, TRAIN, replace(QUICK, epochs=1), cuda_graphs=True)
    assert StandIn.replays == 0
    assert sum(calls) == 5


def test_replaced_weights_are_recorded_anew(stand_in):
    """Against the rule for hooks, but no reason to go on with gradients of tensors that nobody reads."""

    def replace_first(model, epoch):
        layer = next(model[1].children())
        layer.weight.data = layer.weight.data.clone() * 0.5

    plain, _ = trained(hooks=Hooks(after_epoch=replace_first))
    replayed, _ = trained(hooks=Hooks(after_epoch=replace_first), cuda_graphs=True)
    assert StandIn.replays == 4 * QUICK.epochs
    assert same_weights(plain, replayed)
    recorded = StandIn(replayed, lambda x, y: (replayed(x).sum().detach(),), *batch())
    assert recorded.of(replayed)
    replace_first(replayed, 1)
    assert not recorded.of(replayed)


def batch():
    return torch.rand(4, 3, 8, 8), torch.arange(4)


@pytest.mark.parametrize("method", ["dhp", "hesso", "otov2-dhspg", "group-sl"])
def test_methods_that_train_do_so_with_replays(stand_in, method):
    """DHP's generated weights are made of tensors that stay where they are; the others work on gradients."""
    ends = []
    for graphs in (False, True):
        model = small_net()
        session = pruners.start(
            model, method, rate=0.4, epochs=20, data=TRAIN, example_input=TRAIN.pixels(slice(1))
        )
        recipe, after = session.recipes(QUICK.scaled(20))
        fine_tune(model, TRAIN, replace(recipe, epochs=2), hooks=session.hooks, cuda_graphs=graphs)
        small = session.finish(model)(0.4)
        fine_tune(small, TRAIN, replace(after, epochs=1), cuda_graphs=graphs)
        ends.append(small)
    assert StandIn.replays == 4 * 3
    assert same_weights(*ends)


def test_on_a_cpu_the_switch_changes_nothing():
    assert same_weights(trained()[0], trained(cuda_graphs=True)[0])


def test_recording_leaves_statistics_and_random_numbers_alone():
    model = small_net(dropout=0.5).train()
    x = torch.rand(4, 3, 8, 8)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    def compute(x, y):
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return (loss.detach(),)

    StandIn(model, compute, x, torch.arange(4))
    assert same_weights(before, model.state_dict())
    assert torch.equal(random, torch.get_rng_state())


# ---- on a GPU ------------------------------------------------------------------------------------


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_graph_and_eager_training_agree_on_a_gpu(precision):
    recipe = replace(QUICK, precision=precision)
    plain, history = trained(recipe, device="cuda")
    replayed, again = trained(recipe, device="cuda", cuda_graphs=True)
    losses = [[row.train_loss for row in each.epochs] for each in (history, again)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(replayed.state_dict()[name], weight, rtol=1e-2, atol=1e-3)


@needs_gpu
def test_a_resnet_on_a_gpu_is_faster_with_a_graph_and_learns_the_same():
    data = random_split(64 * 100, size=32)
    seconds, losses = {}, {}
    for graphs in (False, True):
        torch.manual_seed(0)
        model = models.create("resnet20")
        recipe = replace(QUICK, epochs=2, batch_size=64)
        rows = fine_tune(model, data, recipe, device="cuda", cuda_graphs=graphs).epochs
        seconds[graphs], losses[graphs] = rows[-1].seconds, rows[-1].train_loss
    print(f"seconds for 100 steps: {seconds[False]:.2f} eager, {seconds[True]:.2f} as a graph")
    assert losses[True] == pytest.approx(losses[False], rel=1e-2)
    assert seconds[True] < seconds[False]
