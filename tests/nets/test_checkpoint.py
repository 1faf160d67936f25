"""gkp.nets.checkpoint: what is loaded is what was saved, bit for bit, and damaged files are named."""

import copy
import json
import warnings

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gkp
from gkp.nets import checkpoint, models
from gkp.nets.files.attributes import UnlikeBaseWarning
from gkp.nets.files.header import header_sha256
from gkp.nets.grouped import GroupedKernelConv2d
from gkp.search import Selection


def network(name="resnet8", **options):
    """A network whose every tensor, batch-norm statistics included, is random."""
    torch.manual_seed(0)
    model = models.create(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def group_kernels(model, path, groups=4, keep=3, seed=0):
    """Replace the convolution at `path` by one with random groups and kept kernels."""
    conv, generator = model.get_submodule(path), torch.Generator().manual_seed(seed)
    order = torch.randperm(conv.out_channels, generator=generator)
    rows = [torch.randperm(conv.in_channels, generator=generator)[:keep].sort().values for _ in range(groups)]
    selection = Selection(order, torch.stack(rows), cost=torch.zeros(groups))
    model.set_submodule(path, GroupedKernelConv2d.from_conv(conv, selection))


def drop_filters(model, path, keep):
    """Keep the first `keep` filters of the first convolution of the block at `path`."""
    block = model.get_submodule(path)
    first, second = block.conv1, block.conv2
    block.conv1 = nn.Conv2d(first.in_channels, keep, 3, first.stride, 1, bias=False)
    block.bn1 = nn.BatchNorm2d(keep)
    block.conv2 = nn.Conv2d(keep, second.out_channels, 3, 1, 1, bias=False)


def factorise(model, path, rank):
    """A convolution followed by a 1x1 convolution with another bias."""
    conv = model.get_submodule(path)
    first = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, conv.stride, conv.padding, bias=False)
    model.set_submodule(path, nn.Sequential(first, nn.Conv2d(rank, conv.out_channels, 1)))


def assert_same(loaded, model, x=None):
    expected, found = model.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert not any(module.training for module in loaded.modules())
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if x is None else x
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))
    assert repr(loaded) == repr(model)


def round_trip(model, path, name="resnet8", **options):
    checkpoint.save_model(model, path, network=name, dataset="cifar10", **options)
    return checkpoint.load_file(path)


@pytest.mark.parametrize("zeros", ["around", "after"])
def test_an_unpruned_network(tmp_path, zeros):
    model = network(zeros=zeros, mean=models.IMAGENET_MEAN, std=models.IMAGENET_STD, num_classes=7)
    assert_same(round_trip(model, tmp_path / "m.safetensors"), model)
    header = checkpoint.read_header(tmp_path / "m.safetensors")
    assert header["modules"] == {}
    assert (header["zeros"], header["num_classes"]) == (zeros, 7)


@settings(max_examples=12)
@given(st.data())
def test_any_mixture_of_prunings(tmp_path_factory, data):
    model = network()
    for stage in ("layer1.0", "layer2.0", "layer3.0"):
        kind = data.draw(st.sampled_from(["none", "filters", "grouped", "factorised", "one filter"]))
        if kind in ("filters", "one filter"):
            drop_filters(model, stage, 1 if kind == "one filter" else data.draw(st.integers(2, 15)))
        elif kind == "grouped":
            group_kernels(model, f"{stage}.conv2", keep=data.draw(st.integers(1, 16)))
        elif kind == "factorised":
            factorise(model, f"{stage}.conv1", data.draw(st.integers(1, 8)))
    path = tmp_path_factory.mktemp("mixed") / "m.safetensors"
    assert_same(round_trip(model, path), model)


def test_grouped_kernels_keep_their_execution_and_stay_trainable(tmp_path):
    model = network()
    group_kernels(model, "layer2.0.conv1")
    model.layer2[0].conv1.execution = "grouped"
    loaded = round_trip(model, tmp_path / "m.safetensors")
    assert_same(loaded, model)
    loaded(torch.rand(1, 3, 32, 32)).sum().backward()
    assert loaded.layer2[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["sr-gkp", "l1"])
def test_what_prune_returns(tmp_path, method):
    model = gkp.prune(network(), method)
    assert_same(round_trip(model, tmp_path / "m.safetensors"), model)
    assert checkpoint.read_header(tmp_path / "m.safetensors")["modules"]


def test_vgg_with_bias_and_a_layer_cut_out(tmp_path):
    model = network("vgg16")
    group_kernels(model, "features.3", keep=20)
    model.features[-3], model.features[-4] = nn.Identity(), nn.Identity()
    assert_same(round_trip(model, tmp_path / "m.safetensors", "vgg16"), model)


def test_other_number_types(tmp_path):
    model = network().bfloat16()
    model.normalize.float()
    expected = model.state_dict()
    checkpoint.save_model(model, tmp_path / "m.safetensors", network="resnet8", dataset="cifar10")
    loaded = checkpoint.load_file(tmp_path / "m.safetensors").state_dict()
    assert all(
        loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)
        for name, value in expected.items()
    )


def test_a_pruned_torchvision_network(tmp_path):
    torch.manual_seed(0)
    model = models.base_network("torchvision:resnet18", num_classes=5, mean=models.IMAGENET_MEAN).eval()
    block = model.network.layer1[0]
    block.conv1, block.bn1, block.conv2 = (
        nn.Conv2d(64, 9, 3, 1, 1),
        nn.BatchNorm2d(9),
        nn.Conv2d(9, 64, 3, 1, 1),
    )
    loaded = round_trip(model, tmp_path / "m.safetensors", "torchvision:resnet18")
    assert_same(loaded, model)
    assert loaded.network.fc.out_features == 5
    with pytest.raises(ValueError, match="resnet18"):
        models.base_network("torchvision:resnet19")


def test_a_network_of_ones_own_needs_its_base(tmp_path):
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 900, 2))
    model = copy.deepcopy(base)
    group_kernels(model, "0", keep=2)
    path = tmp_path / "own.safetensors"
    checkpoint.save_model(model, path, network="mine", dataset="photos", base=base)
    assert_same(checkpoint.load_file(path, base=base), model)
    assert isinstance(base[0], nn.Conv2d)
    with pytest.raises(ValueError, match="unknown network 'mine'.* your own give base="):
        checkpoint.load_file(path)


class Set(nn.Module):
    """What it computes hangs on settings that no tensor holds."""

    def __init__(self, factor=1.0, act="relu", eps=1e-5):
        super().__init__()
        self.factor, self.act = factor, act
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, eps)

    def forward(self, x):
        self.seen = float(x.sum())
        return self.factor * getattr(torch, self.act)(self.norm(self.conv(x))).mean((2, 3))


class Negated(Set):
    def forward(self, x):
        return -super().forward(x)


def test_another_base_than_at_saving_is_named(tmp_path):
    base, path = Set(), tmp_path / "own.safetensors"
    model = copy.deepcopy(base).eval()
    group_kernels(model, "conv", keep=2)
    checkpoint.save_model(model, path, network="mine", dataset="photos", base=base)
    base(torch.rand(2, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(checkpoint.load_file(path, base=base), model)
        assert_same(checkpoint.load_file(path, base=Set()), model)
    others = ((Set(2.0), "Set"), (Set(act="sigmoid"), "Set"), (Set(eps=0.1), "norm"), (Negated(), "Negated"))
    for other, named in others:
        with pytest.warns(UnlikeBaseWarning, match=rf"saved with \({named}, in class"):
            checkpoint.load_file(path, base=other)


class Scaled(nn.Module):
    """A convolution whose channels are scaled by a buffer that no state_dict has."""

    def __init__(self, scale=1.0, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.register_buffer("scale", torch.full((channels, 1, 1), scale), persistent=False)
        self.register_buffer("seen", None, persistent=False)

    def forward(self, x):
        return self.scale * self.conv(x)


@pytest.mark.parametrize("channels", [4, 2])
def test_buffers_that_are_not_persistent(tmp_path, channels):
    model, path = Scaled(3.0, channels), tmp_path / "own.safetensors"
    model.seen = torch.arange(5)
    model.conv.out_channels = channels
    checkpoint.save_model(model, path, network="mine", dataset="photos", base=Scaled())
    loaded = checkpoint.load_file(path, base=Scaled())
    assert_same(loaded, model)
    assert torch.equal(loaded.seen, model.seen)
    assert "scale" not in loaded.state_dict()


def test_a_buffer_that_is_not_persistent_and_the_base_lacks_is_refused(tmp_path):
    model = Scaled()
    model.register_buffer("mask", torch.ones(1), persistent=False)
    with pytest.raises(ValueError, match="the unpruned network has no buffer mask: register it there too"):
        checkpoint.save_model(model, tmp_path / "m.safetensors", network="mine", dataset="d", base=Scaled())


def test_a_base_that_keeps_what_it_computed(tmp_path):
    class Keeping(nn.Conv2d):
        def forward(self, x):
            self.features = super().forward(x)
            return self.features

    base, path = nn.Sequential(Keeping(3, 4, 3)), tmp_path / "own.safetensors"
    base(torch.rand(1, 3, 8, 8))
    checkpoint.save_model(base, path, network="mine", dataset="photos", base=base)
    assert_same(checkpoint.load_file(path, base=base), base)


def test_what_is_said_about_a_model_is_kept(tmp_path):
    path, about = tmp_path / "m.safetensors", {"method": "sr-gkp", "rate": 0.4375, "seeds": [1, 2]}
    checkpoint.save_model(network(), path, network="resnet8", dataset="digits", about=about)
    header = checkpoint.read_header(path)
    assert (header["about"], header["dataset"], header["network"]) == (about, "digits", "resnet8")
    with pytest.raises(ValueError, match="about can hold"):
        checkpoint.save_model(
            network(), path, network="resnet8", dataset="digits", about={"x": torch.ones(1)}
        )


def test_the_same_model_gives_the_same_file_and_its_hash(tmp_path):
    hashes = {round_trip_hash(network(), tmp_path / f"{name}.safetensors") for name in "ab"}
    assert hashes == {checkpoint.files.sha256_file(tmp_path / "a.safetensors")}
    other = network()
    other.conv1.weight.data[0, 0, 0, 0] += 1e-6
    assert round_trip_hash(other, tmp_path / "c.safetensors") not in hashes


def round_trip_hash(model, path):
    return checkpoint.save_model(model, path, network="resnet8", dataset="cifar10")


def test_neither_saving_nor_loading_touches_the_random_state(tmp_path):
    model = network()
    group_kernels(model, "layer2.0.conv1")
    state = torch.random.get_rng_state()
    round_trip(model, tmp_path / "m.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_a_file_cannot_hold_is_refused_before_writing(tmp_path):
    class Odd(nn.Conv2d):
        pass

    def odd(model):
        model.layer1[0].conv1 = Odd(16, 16, 3, padding=1, bias=False)

    def hooked(model):
        model.layer1[0].conv1.register_forward_hook(lambda *_: None)

    def masked(model):
        nn.utils.parametrize.register_parametrization(model.layer1[0].conv1, "weight", nn.Identity())

    def extra(model):
        model.layer1[0].register_buffer("mask", torch.ones(1))

    class Counting(nn.ReLU):
        def get_extra_state(self):
            return {"calls": 3}

    def stateful(model):
        model.layer1[0].relu = Counting()

    path = tmp_path / "m.safetensors"
    cases = {odd: "layer1.0.conv1 is a Odd", hooked: "hooks", masked: "layer1.0.conv1", extra: "mask"}
    cases[stateful] = r"layer1\.0\.relu puts a dict into the state_dict .*: keep it in a buffer"
    for change, message in cases.items():
        model = network()
        change(model)
        with pytest.raises(ValueError, match=message):
            checkpoint.save_model(model, path, network="resnet8", dataset="cifar10")
    with pytest.raises(ValueError, match="unlike the network"):
        checkpoint.save_model(network(), path, network="vgg16", dataset="cifar10")
    with pytest.raises(ValueError, match="unknown network"):
        checkpoint.save_model(network(), path, network="resnet9", dataset="cifar10")
    with pytest.raises(ValueError, match="m.pt: give a name that ends in .safetensors"):
        checkpoint.save_model(network(), tmp_path / "m.pt", network="resnet8", dataset="cifar10")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    model = network()
    group_kernels(model, "layer2.0.conv1")
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    checkpoint.save_model(model, path, network="resnet8", dataset="cifar10")
    return path.read_bytes()


@settings(max_examples=30)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_by_name(tmp_path_factory, good, where):
    path = tmp_path_factory.mktemp("cut") / "m.safetensors"
    path.write_bytes(good[: int(where * len(good))])
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        checkpoint.load_file(path)


@settings(max_examples=30)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_among_the_tensors_is_refused(tmp_path_factory, good, where, bit):
    start = 8 + int.from_bytes(good[:8], "little")
    index = start + int(where * (len(good) - start))
    changed = bytearray(good)
    changed[index] ^= 1 << bit
    path = tmp_path_factory.mktemp("bit") / "m.safetensors"
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged"):
        checkpoint.load_file(path)


def test_foreign_files_are_refused_by_name(tmp_path):
    torch.save(network(), tmp_path / "pickle.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    for name in ("pickle.pt", "text.safetensors", "other.safetensors"):
        with pytest.raises(ValueError, match=name):
            checkpoint.load_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent"):
        checkpoint.load_file(tmp_path / "absent")


def with_header(good, path, change):
    """The good file with its header changed by `change`."""
    path.write_bytes(good)
    header = checkpoint.read_header(path)
    change(header)
    if "header" in header:
        header["header"] = header_sha256(header)
    safetensors.torch.save_file(safetensors.torch.load(good), path, {"gkp": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=2), "update gkp"),
        (lambda h: h.update(network="resnet14"), "layer1.1"),
        (lambda h: h.update(network="resnet9"), "resnet9"),
        (lambda h: h.pop("modules"), "modules"),
        (lambda h: h["modules"]["layer2.0.conv1"].update(kind="eval"), "unknown kind 'eval'"),
        (lambda h: h["modules"]["layer2.0.conv1"].update(in_channels=2), "input channels in 0..1"),
        (lambda h: h["modules"]["layer2.0.conv1"].update(colour="red"), "colour"),
        (lambda h: h["modules"].update({"layer9.conv": {"kind": "Identity"}}), "layer9"),
    ],
    ids=["newer", "deeper", "unknown", "no modules", "kind", "size", "argument", "place"],
)
def test_a_wrong_description_is_refused_by_name(tmp_path, good, change, message):
    path = tmp_path / "m.safetensors"
    with_header(good, path, change)
    with pytest.raises(ValueError, match=rf"(?s)m\.safetensors.*{message}"):
        checkpoint.load_file(path)


def test_a_changed_digit_of_the_header_is_refused(tmp_path, good):
    path = tmp_path / "m.safetensors"
    path.write_bytes(good)
    header = checkpoint.read_header(path)
    end = 8 + int.from_bytes(good[:8], "little")
    digits = [place for place in range(8, end) if good[place : place + 1].isdigit()]
    refused = 0
    for place in digits[::3]:
        changed = bytearray(good)
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            checkpoint.load_file(path)
        except ValueError as error:
            assert "m.safetensors is damaged" in str(error)  # noqa: PT017
            refused += 1
        else:  # the last digit of a number may say nothing
            assert checkpoint.read_header(path) == header
    assert refused > 100


def test_a_file_from_before_headers_had_a_hash_loads(tmp_path, good):
    path = tmp_path / "m.safetensors"
    with_header(good, path, lambda header: header.pop("header"))
    assert "header" not in checkpoint.read_header(path)
    path.with_name("good.safetensors").write_bytes(good)
    assert_same(checkpoint.load_file(path), checkpoint.load_file(path.with_name("good.safetensors")))


def test_keys_that_are_numbers_do_not_look_like_damage(tmp_path):
    path, about = tmp_path / "m.safetensors", {"epochs": {2: 0.5, 10: float("inf")}}
    checkpoint.save_model(network(), path, network="resnet8", dataset="digits", about=about)
    assert checkpoint.read_header(path)["about"] == {"epochs": {"2": 0.5, "10": float("inf")}}
