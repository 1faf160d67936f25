"""gkp.nets.zoo: public, shipped and own checkpoints; damaged and unknown ones; nothing is executed."""

import json
import os

import pytest
import torch
from torch import nn

from gkp.nets import checkpoint, models, zoo
from gkp.nets.files import published
from gkp.nets.files.tensors import tensors_sha256
from gkp.utils import files, unpickle


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No checkpoints on this machine and no way out."""
    monkeypatch.delenv("GKP_CHECKPOINTS", raising=False)
    monkeypatch.setenv("GKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AKAMASTER_URL", "AUTHORS_URL"):
        monkeypatch.setattr(
            published, name, "http://127.0.0.1:9/" + getattr(published, name).rpartition("/")[2]
        )


class TheirBlock(nn.Module):
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv_a = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn_a = nn.BatchNorm2d(channels)
        self.conv_b = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn_b = nn.BatchNorm2d(channels)
        self.downsample = None if in_channels == channels else nn.AvgPool2d(1)


class TheirNet(nn.Module):
    """A ResNet-20 with the names of layers of the authors' release, never called."""

    def __init__(self):
        super().__init__()
        self.conv_1_3x3 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(16)
        self.stage_1 = nn.Sequential(*(TheirBlock(16, 16, 1) for _ in range(3)))
        self.stage_2 = nn.Sequential(TheirBlock(16, 32, 2), TheirBlock(32, 32, 1), TheirBlock(32, 32, 1))
        self.stage_3 = nn.Sequential(TheirBlock(32, 64, 2), TheirBlock(64, 64, 1), TheirBlock(64, 64, 1))
        self.classifier = nn.Linear(64, 10)


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def their_file(alone, monkeypatch, tmp_path, serve):
    """A whole-module pickle with a hostile attribute where the authors' file is; (path, module, mark)."""
    torch.manual_seed(0)
    net, mark = TheirNet(), tmp_path / "mark"
    net.extra = Hostile(mark)
    path = tmp_path / "upstream" / "resnet20_cifar10_ba.pt"
    path.parent.mkdir()
    torch.save(net, path)
    monkeypatch.setattr(published, "AUTHORS_URL", f"{serve(path.parent)}/{path.name}")
    monkeypatch.setattr(published, "AUTHORS_TENSORS", tensors_sha256(net.state_dict()))
    return path, net, mark


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_public_networks_are_loaded_without_a_random_draw(monkeypatch, their_file, name):
    theirs = models.create("resnet56").state_dict()
    tensors = {key: value for key, value in theirs.items() if not key.startswith("normalize.")}
    if name == "resnet56":
        monkeypatch.setattr(published, "_fetch", lambda *_: "resnet56")
        monkeypatch.setattr(published.unpickle, "read_module", lambda _: tensors)
    state = torch.get_rng_state()
    zoo.load_model(name)
    assert torch.equal(torch.get_rng_state(), state)
    zoo.load_model(name, weights="random")
    assert not torch.equal(torch.get_rng_state(), state)


def test_the_authors_file_is_read_without_running_it(their_file):
    path, net, mark = their_file
    model = zoo.load_model("resnet20")
    assert not mark.exists()
    pairs = {
        "conv1.weight": net.conv_1_3x3.weight,
        "layer2.0.conv1.weight": net.stage_2[0].conv_a.weight,
        "layer3.2.bn2.running_var": net.stage_3[2].bn_b.running_var,
        "linear.bias": net.classifier.bias,
    }
    assert all(torch.equal(model.state_dict()[name], value) for name, value in pairs.items())
    assert len(model.state_dict()) == len(net.state_dict()) + 2  # mean and std
    path.unlink()
    assert torch.equal(zoo.load_model("resnet20").conv1.weight, model.conv1.weight)  # from the cache


def test_other_arrays_than_the_authors_are_refused(their_file):
    path, net, _ = their_file
    net.stage_1[0].conv_a.weight.data[0, 0, 0, 0] += 1e-6
    torch.save(net, path)
    with pytest.raises(
        ValueError, match=rf"resnet20_cifar10_ba\.pt .* should be {published.AUTHORS_TENSORS} but is"
    ):
        zoo.load_model("resnet20", weights="authors")


def akamasters(monkeypatch, folder, *, digits):
    """An akamaster-like ResNet-32 in `folder`, with that many digits of its hash known; (path, module)."""
    torch.manual_seed(1)
    net = models.create("resnet32", zeros="around")
    state = {f"module.{k}": v for k, v in net.state_dict().items() if not k.startswith("normalize")}
    folder.mkdir()
    torch.save({"state_dict": state, "best_prec1": 9.0}, folder / "new")
    sha256 = files.sha256_file(folder / "new")
    path = (folder / "new").rename(folder / f"resnet32-{sha256[:8]}.th")
    monkeypatch.setitem(published.AKAMASTER, "resnet32", sha256[:digits])
    return path, net


@pytest.mark.parametrize("digits", [8, 64])
def test_akamaster_by_url_then_offline(alone, monkeypatch, tmp_path, serve, digits):
    path, net = akamasters(monkeypatch, tmp_path / "upstream", digits=digits)
    monkeypatch.setattr(published, "AKAMASTER_URL", serve(path.parent) + "/")
    model = zoo.load_model("resnet32")
    assert all(
        torch.equal(model.state_dict()[name], value)
        for name, value in net.state_dict().items()
        if not name.startswith("normalize")
    )
    assert model.layer2[0].shortcut.padding[4:] == (8, 8)
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(models.IMAGENET_MEAN))
    assert not model.training
    path.unlink()
    zoo.load_model("resnet32")


@pytest.mark.parametrize("digits", [8, 64])
def test_a_damaged_download_is_refused_and_not_kept(alone, monkeypatch, tmp_path, serve, digits):
    path, _ = akamasters(monkeypatch, tmp_path / "upstream", digits=digits)
    monkeypatch.setattr(published, "AKAMASTER_URL", serve(path.parent) + "/")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=path.name):
        zoo.load_model("resnet32")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.mark.parametrize("below", ["", "akamaster"])
def test_offline_folder_is_used_and_checked(alone, monkeypatch, tmp_path, below):
    path, net = akamasters(monkeypatch, tmp_path / "upstream", digits=64)
    (tmp_path / "given" / below).mkdir(parents=True)
    path = path.rename(tmp_path / "given" / below / path.name)
    monkeypatch.setenv("GKP_CHECKPOINTS", str(tmp_path / "given"))
    assert torch.equal(zoo.load_model("resnet32").conv1.weight, net.conv1.weight)
    expected = files.sha256_file(path)
    path.write_bytes(path.read_bytes()[:5000])
    found = files.sha256_file(path)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .* should be {expected} but is {found}"):
        zoo.load_model("resnet32")
    assert path.exists()  # it is the user's


@pytest.mark.parametrize(
    ("name", "file"), [("resnet20", "resnet20_cifar10_ba.pt"), ("resnet44", "resnet44-014dd654.th")]
)
def test_no_network_is_one_clear_sentence(alone, name, file):
    with pytest.raises(FileNotFoundError, match=rf"cannot download .*set GKP_CHECKPOINTS .*{file}"):
        zoo.load_model(name)


def test_random_weights_follow_the_seed():
    def load(seed, name="resnet20", **options):
        torch.manual_seed(seed)
        return zoo.load_model(name, weights="random", **options)

    assert torch.equal(load(0).conv1.weight, load(0).conv1.weight)
    assert not torch.equal(load(0).conv1.weight, load(1).conv1.weight)
    assert load(0, dataset="cifar100").linear.out_features == 100
    net = load(0, "torchvision:squeezenet1_1", dataset="digits")
    assert net(torch.rand(1, 3, 64, 64)).shape == (1, 10)
    torch.testing.assert_close(net.normalize.std.flatten(), torch.tensor(models.IMAGENET_STD))


def test_torchvision_weights_are_found_checked_and_put_behind_normalize(alone, monkeypatch, tmp_path):
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_1(weights=None)
    torch.save(net.state_dict(), tmp_path / "weights")
    file = tmp_path / f"squeezenet1_1-{files.sha256_file(tmp_path / 'weights')[:8]}.pth"
    (tmp_path / "weights").rename(file)
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setattr(type(weights), "url", f"http://127.0.0.1:9/{file.name}")
    with pytest.raises(FileNotFoundError, match="GKP_CHECKPOINTS"):
        zoo.load_model("torchvision:squeezenet1_1")
    monkeypatch.setenv("GKP_CHECKPOINTS", str(tmp_path))
    model, x = zoo.load_model("torchvision:squeezenet1_1"), torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x), net.eval()(model.normalize(x)))
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=file.name):
        zoo.load_model("torchvision:squeezenet1_1")


def test_own_files_by_weights_and_by_path(tmp_path):
    model, path = models.create("resnet8").eval(), tmp_path / "mine.safetensors"
    checkpoint.save_model(model, path, network="resnet8", dataset="cifar10")
    for loaded in (zoo.load_model("resnet8", weights=path), zoo.load_model(str(path))):
        assert torch.equal(loaded.conv1.weight, model.conv1.weight)
    with pytest.raises(ValueError, match="holds a resnet8, not a resnet20"):
        zoo.load_model("resnet20", weights=path)
    with pytest.raises(FileNotFoundError, match="absent"):
        zoo.load_model("resnet8", weights="absent.safetensors")


def test_shipped_checkpoints_are_checked_against_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="manifest"):
        zoo.load_model("suite/run")
    model, path = models.create("resnet8").eval(), tmp_path / "suite" / "run.safetensors"
    sha256 = checkpoint.save_model(model, path, network="resnet8", dataset="cifar10")
    entries = {"suite/run.safetensors": {"sha256": sha256}, "suite/gone.safetensors": {"sha256": sha256}}
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    assert torch.equal(zoo.load_model("suite/run").conv1.weight, model.conv1.weight)
    with pytest.raises(ValueError, match="choose one of suite/gone, suite/run"):
        zoo.load_model("suite/other")
    with pytest.raises(FileNotFoundError, match="git checkout"):
        zoo.load_model("suite/gone")
    checkpoint.save_model(models.create("resnet8"), path, network="resnet8", dataset="cifar10")
    with pytest.raises(ValueError, match=rf"run\.safetensors is damaged .* should be {sha256}"):
        zoo.load_model("suite/run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet21"}, "choose one of resnet8, .*vgg16, torchvision"),
        ({"name": "resnet21", "weights": "random"}, "choose one of resnet8"),
        ({"name": "resnet20", "weights": "alice"}, "choose authors, akamaster, random"),
        ({"name": "resnet20", "dataset": "svhn"}, "choose one of digits, cifar10"),
        ({"name": "resnet32", "weights": "authors"}, 'only resnet20 for cifar10: choose weights="random"'),
        ({"name": "vgg16"}, "published no vgg16"),
        ({"name": "resnet20", "dataset": "cifar100"}, "published no resnet20 for cifar100"),
        ({"name": "torchvision:resnet19", "weights": "random"}, "choose one of .*resnet18"),
        ({"name": "torchvision:resnet18", "weights": "authors"}, "not 'authors'"),
    ],
)
def test_unknown_names_list_the_choices(alone, arguments, message):
    with pytest.raises(ValueError, match=message):
        zoo.load_model(**arguments)


def accuracy(model, split):
    with torch.no_grad():
        return (model(split.pixels()).argmax(1) == split.labels).float().mean().item()


def test_public_networks_classify_real_images(cifar10_test, ak20, authors20):
    # counts from a run that gave 91.73 % and 91.98 % on all 9,979; one image for another arithmetic
    if cifar10_test.fingerprint[:8] != "a1286c6f":
        pytest.skip(f"the counts are for other images than {cifar10_test}")
    first = cifar10_test.take(500)
    assert accuracy(ak20, first) == pytest.approx(455 / 500, abs=1 / 400)
    assert accuracy(authors20, first) == pytest.approx(463 / 500, abs=1 / 400)


def test_the_real_public_file_has_the_hash_and_the_names_we_know(ak20):
    path = published._offline("resnet20-12fca82f.th", "akamaster")
    tensors = unpickle.read_module(path)
    reference = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert len(tensors) == len(reference)
    for name, value in reference.items():
        assert torch.equal(tensors[name.removeprefix("module.")], value)
        assert torch.equal(ak20.state_dict()[name.removeprefix("module.")], value)
