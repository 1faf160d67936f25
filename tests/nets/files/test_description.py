"""What is loaded computes what was saved: any method, network, sharing, type and flag, or saving says why."""

import copy

import pytest
import torch
from layers import grouped_kernels
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

import gkp
from gkp.nets import checkpoint, models


def through_a_file(model: nn.Module, base: nn.Module, tmp_path) -> nn.Module:
    path = tmp_path / "net.safetensors"
    checkpoint.save_model(model, path, network="mine", dataset="photos", base=base)
    return checkpoint.load_file(path, base=base)


def assert_same(loaded: nn.Module, model: nn.Module, x: Tensor) -> None:
    model = copy.deepcopy(model).eval()
    assert repr(loaded) == repr(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == flags
    assert all(
        found.dtype == expected.dtype
        for found, expected in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("network", "method"),
    [
        *(("resnet8", method) for method in ("gkp-greedy", "lrf", "l1", "group-norm", "fpgm")),
        *(("resnet14", method) for method in ("gkp-greedy", "random")),
        ("torchvision:squeezenet1_1", "l1"),
        ("torchvision:squeezenet1_1", "lrf"),
        ("torchvision:mobilenet_v3_small", "l1"),
        ("torchvision:mnasnet0_5", "l1"),
    ],
)
def test_every_method_and_network(network: str, method: str, tmp_path) -> None:
    torch.manual_seed(0)
    model, path = gkp.load_model(network, weights="random"), tmp_path / "net.safetensors"
    x = torch.rand(2, 3, 64, 64) if network.startswith("torchvision") else torch.rand(2, 3, 32, 32)
    pruned = gkp.prune(model, method, rate=0.4, example_input=x[:1])
    checkpoint.save_model(pruned, path, network=network, dataset="cifar10")
    assert checkpoint.read_header(path)["modules"]
    assert_same(gkp.load_model(path), pruned, x)


class Scaled(nn.Module):
    """A block with a parameter and a plain value of its own, both of the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.bounds = width, (0, width)
        self.scale = nn.Parameter(torch.randn(width, 1, 1))
        self.register_buffer("shift", torch.randn(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale + self.shift)[:, self.bounds[0] : self.width]


class Derived(nn.Conv2d):
    """A convolution of somebody's own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


# Layers between two convolutions, as they are for a width.
LAYERS = {
    "group norm": lambda width: nn.GroupNorm(2, width),
    "layer norm": lambda width: nn.LayerNorm((width, 6, 6), bias=False),
    "instance norm": lambda width: nn.InstanceNorm2d(width, affine=True, track_running_stats=True),
    "frozen norm": FrozenBatchNorm2d,
    "norm without scale": lambda width: nn.BatchNorm2d(width, affine=False),
    "slopes": nn.PReLU,
    "depthwise": lambda width: nn.Conv2d(width, width, 3, padding=1, groups=width),
    "circular": lambda width: nn.Conv2d(width, width, 3, padding=1, padding_mode="circular"),
    "transposed": lambda width: nn.ConvTranspose2d(width, width, 3, 2, 1, output_padding=1, bias=False),
    "a block of one's own": Scaled,
    "a convolution of one's own": lambda width: Derived(width, width),
    "several": lambda width: nn.Sequential(nn.GroupNorm(1, width), nn.PReLU(width), Scaled(width)),
    "sequences": lambda width: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(width, width, 1), nn.BatchNorm1d(width), nn.Unflatten(2, (6, 6))
    ),
}


def between(make, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), make(width), nn.Conv2d(width, 4, 1)).eval()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("built_in_place", [False, True])
def test_layers_that_filter_pruning_narrows(name: str, built_in_place: bool, tmp_path) -> None:
    torch.manual_seed(0)
    base, model = between(LAYERS[name], 8), between(LAYERS[name], 6)
    if built_in_place:  # the wide network with its modules changed, as surgery leaves it
        wide = copy.deepcopy(base)
        for module, narrow in zip(wide.modules(), model.modules(), strict=True):
            own = {key: value for key, value in vars(narrow).items() if key != "_modules"}
            vars(module).update(own)
        model = wide
    assert_same(through_a_file(model, base, tmp_path), model, torch.randn(2, 3, 8, 8))


def test_a_value_that_no_file_can_hold_is_refused(tmp_path) -> None:
    base, model = between(nn.PReLU, 8), between(nn.PReLU, 8)
    model[1] = nn.Softplus()
    with pytest.raises(ValueError, match="1 is a Softplus, which a file cannot describe"):
        through_a_file(model, base, tmp_path)


class Network(nn.Module):
    """Two convolutions that may share something, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.norm(self.second(self.first(x))))


def tied_weights(net: Network) -> None:
    net.second.weight = net.first.weight


def tied_to_the_network(net: Network) -> None:
    net.kernel = net.block[1].weight


def tied_statistics(net: Network) -> None:
    net.norm.running_mean = net.norm.running_var


def under_two_names(net: Network) -> None:
    net.second = net.block[1] = net.first


def a_shared_block(net: Network) -> None:
    net.second = net.block


def pruned_and_shared(net: Network) -> None:
    net.first = net.second = grouped_kernels(net.first, groups=2, keep=2)


def split_and_shared(net: Network) -> None:
    net.second = net.first = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 3, padding=1))


SHARING = (
    tied_weights,
    tied_statistics,
    under_two_names,
    a_shared_block,
    pruned_and_shared,
    split_and_shared,
)


def objects(model: nn.Module) -> list[int]:
    """For every tensor and module, under all names, which of them it is: equal numbers are one object."""
    found: dict[int, int] = {}
    named = [*model.named_modules(remove_duplicate=False), *model.named_parameters(remove_duplicate=False)]
    return [found.setdefault(id(each), len(found)) for _, each in named]


@pytest.mark.parametrize("change", SHARING)
@pytest.mark.parametrize("base_shares", [False, True])
def test_what_was_shared_is_shared_again(change, base_shares: bool, tmp_path) -> None:
    torch.manual_seed(0)
    base, model = Network().eval(), Network().eval()
    change(model)
    if base_shares and change not in (pruned_and_shared, split_and_shared):
        change(base)
    loaded, x = through_a_file(model, base, tmp_path), torch.randn(2, 4, 6, 6)
    assert_same(loaded, model, x)
    assert objects(loaded) == objects(model)
    for network in (model, loaded):
        network(x).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(parameter.grad if parameter.grad is not None else 0)
    torch.testing.assert_close(loaded(x), model(x))


def test_a_tensor_of_the_network_itself_is_tied_when_its_base_has_it(tmp_path) -> None:
    base, model = Network().eval(), Network().eval()
    tied_to_the_network(base)
    tied_to_the_network(model)
    loaded = through_a_file(model, base, tmp_path)
    assert loaded.kernel is loaded.block[1].weight
    with pytest.raises(ValueError, match="cannot be described in a file"):
        through_a_file(model, Network(), tmp_path)


@pytest.mark.parametrize("change", [tied_weights, under_two_names, a_shared_block])
def test_a_network_that_shares_less_than_its_base_is_never_mixed_up(change, tmp_path) -> None:
    torch.manual_seed(0)
    base, model = Network().eval(), Network().eval()
    change(base)
    if change is a_shared_block:
        model.second = copy.deepcopy(model.block)
    if change is tied_weights:  # only their values differ, which a file holds
        assert_same(through_a_file(model, base, tmp_path), model, torch.randn(2, 4, 6, 6))
        return
    with pytest.raises(ValueError, match="it shares .* otherwise than the network it is to be saved as"):
        through_a_file(model, base, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("change", [None, tied_weights, pruned_and_shared])
def test_other_types_and_frozen_parameters_come_back(dtype: torch.dtype, change, tmp_path) -> None:
    model = Network().eval()
    if change is not None:
        change(model)
    model.to(dtype).first.requires_grad_(False)
    model.norm.bias.requires_grad_(False)
    assert_same(through_a_file(model, Network(), tmp_path), model, torch.randn(2, 4, 6, 6, dtype=dtype))


def test_a_grouped_linear_layer_comes_back(tmp_path) -> None:
    base = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
    model = copy.deepcopy(base).eval()
    model[0] = grouped_kernels(model[0], groups=2, keep=3)
    model[2] = grouped_kernels(model[2], groups=2, keep=3)
    model[2].execution = "grouped"
    assert_same(through_a_file(model, base, tmp_path), model, torch.randn(2, 5, 6))


def test_plain_files_mention_neither_sharing_nor_flags(tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    checkpoint.save_model(models.create("resnet8"), path, network="resnet8", dataset="digits")
    header = checkpoint.read_header(path)
    assert not {"tied", "names", "frozen"} & set(header)


def test_a_network_without_values_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="on the meta device: load its weights before saving"):
        through_a_file(Network().to("meta"), Network(), tmp_path)


def three_layers() -> nn.Sequential:
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def parametrised(wrap):
    """`wrap` computes the weight of the first layer."""

    def make(net: nn.Sequential) -> nn.Module:
        wrap(net[0])
        return net

    return make


CLASSES_OF_ONE_INSTANCE = {
    "weight norm": parametrised(nn.utils.parametrizations.weight_norm),
    "spectral norm": parametrised(nn.utils.parametrizations.spectral_norm),
    "torch.fx": torch.fx.symbolic_trace,
    "torch.compile": compiled,
}


@pytest.mark.parametrize("method", ["l1", "sr-gkp"])
@pytest.mark.parametrize("name", CLASSES_OF_ONE_INSTANCE)
def test_classes_that_pytorch_makes_for_each_instance(name: str, method: str, tmp_path) -> None:
    torch.manual_seed(0)
    make, x = CLASSES_OF_ONE_INSTANCE[name], torch.rand(2, 3, 10, 10)
    pruned = gkp.prune(make(three_layers()).eval(), method, groups=2, example_input=x[:1])
    assert_same(through_a_file(pruned, make(three_layers()), tmp_path), pruned, x)


@pytest.mark.parametrize("around", [(True, False), (False, True), (True, True)])
def test_networks_are_saved_without_what_compiles_them(around: tuple[bool, bool], tmp_path) -> None:
    nets = [three_layers(), three_layers()]
    model, base = (compiled(net) if wraps else net for net, wraps in zip(nets, around, strict=True))
    assert_same(through_a_file(model, base, tmp_path), nets[0], torch.rand(2, 3, 10, 10))
    assert all(
        "_orig_mod" not in name
        for name in checkpoint.load_file(tmp_path / "net.safetensors", base=nets[1]).state_dict()
    )


def test_a_compiled_layer_stays_compiled(tmp_path) -> None:
    model, base = three_layers(), three_layers()
    for net in (model, base):
        net[2] = compiled(net[2])
    loaded = through_a_file(model, base, tmp_path)
    assert torch.equal(loaded.state_dict()["2._orig_mod.weight"], model[2].weight)


def test_a_file_of_a_compiled_network_with_its_wrapper_loads(tmp_path, monkeypatch) -> None:
    """As older versions wrote it."""
    model = compiled(three_layers())
    monkeypatch.setattr(checkpoint, "_uncompiled", lambda net: net)
    loaded = through_a_file(model, compiled(three_layers()), tmp_path)
    monkeypatch.undo()
    again = checkpoint.load_file(tmp_path / "net.safetensors", base=compiled(three_layers()))
    assert list(again.state_dict()) == list(loaded.state_dict()) == list(model.state_dict())


def test_other_parametrisations_and_other_code_are_refused(tmp_path) -> None:
    normed = CLASSES_OF_ONE_INSTANCE["weight norm"]
    spectral = CLASSES_OF_ONE_INSTANCE["spectral norm"]
    for model, base in ((normed, lambda net: net), (normed, spectral)):
        with pytest.raises(ValueError, match="which a file cannot describe"):
            through_a_file(model(three_layers()), base(three_layers()), tmp_path)
    longer = torch.fx.symbolic_trace(nn.Sequential(three_layers(), nn.Identity()))
    with pytest.raises(
        ValueError, match="a Sequential, unlike the network .* of its code if torch.fx made it"
    ):
        through_a_file(longer, torch.fx.symbolic_trace(three_layers()), tmp_path)
    with pytest.raises(ValueError, match=r"DataParallel, unlike .* save model\.module"):
        through_a_file(nn.DataParallel(three_layers()), three_layers(), tmp_path)
