"""gkp.utils.unpickle: arrays and tensors come out of pickles, and nothing in them runs."""

import functools
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from gkp.utils import unpickle


class Hostile:
    """Runs `touch <path>` when unpickled the ordinary way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Net(nn.Module):
    """Has what the authors' file has: own classes, shared storage, buffers, a callable attribute."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.head.bias = nn.Parameter(torch.arange(6.0).view(3, 2).T[1, 1:])  # a strided view
        self.hook = os.path.join


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.int64, np.float32, ">i2"]), hnp.array_shapes(max_dims=3)),
    st.integers(0, 4),
)
def test_arrays_survive_every_pickle_protocol(tmp_path_factory, array, protocol):
    path = tmp_path_factory.mktemp("arrays") / "batch"
    path.write_bytes(pickle.dumps({b"data": array, "labels": [1, 2]}, protocol))
    content = unpickle.read_arrays(path)
    np.testing.assert_array_equal(content["data"], array)
    assert content["data"].dtype == array.dtype
    assert content["labels"] == [1, 2]


def test_reads_a_python_2_pickle(tmp_path):
    # Written byte by byte as Python 2 did for the official files: str for keys and for array data.
    python2 = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        b"U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff"
        b"\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x00\x01\xff\xfe\x80\x7ftbU\x06labelsq\x08]q\x09(K\x06K\x09eu."
    )
    (tmp_path / "data_batch_1").write_bytes(python2)
    content = unpickle.read_arrays(tmp_path / "data_batch_1")
    np.testing.assert_array_equal(content["data"], np.array([[0, 1, 255], [254, 128, 127]], np.uint8))
    assert content["labels"] == [6, 9]


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.array([object()], dtype=object)},
        {"data": np.dtype("O")},
        {"data": np.float64},
        {"data": print},
        [1, 2],
    ],
    ids=["object array", "object dtype", "another class", "a function", "no dictionary"],
)
def test_array_reader_refuses_all_but_plain_arrays(tmp_path, content):
    (tmp_path / "batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="batch"):
        unpickle.read_arrays(tmp_path / "batch")


def test_array_reader_never_runs_a_hostile_file(tmp_path):
    mark = tmp_path / "mark"
    hostile = pickle.dumps({"data": Hostile(mark)}, 2)
    (tmp_path / "batch").write_bytes(hostile)
    with pytest.raises(ValueError, match="which NumPy arrays do not need"):
        unpickle.read_arrays(tmp_path / "batch")
    assert not mark.exists()
    pickle.loads(hostile)  # the file is truly hostile
    assert mark.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_a_whole_module_without_its_classes(tmp_path, zipped):
    net = Net()
    torch.save(net, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    tensors = unpickle.read_module(tmp_path / "net.pt")
    expected = net.state_dict()
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: {"state_dict": d, "epoch": 3}], ids=["bare", "nested"]
)
def test_reads_state_dicts_and_drops_the_data_parallel_prefix(tmp_path, wrap):
    state = nn.DataParallel(Net()).state_dict()
    torch.save(wrap(state), tmp_path / "net.pt")
    tensors = unpickle.read_module(tmp_path / "net.pt")
    assert all(torch.equal(tensors[name.removeprefix("module.")], value) for name, value in state.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_module_reader_never_runs_a_hostile_file(tmp_path, zipped):
    net, mark = Net(), tmp_path / "mark"
    net.extra = Hostile(mark)
    torch.save(net, tmp_path / "net.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(unpickle.read_module(tmp_path / "net.pt")["head.weight"], net.head.weight)
    assert not mark.exists()
    torch.load(tmp_path / "net.pt", weights_only=False)  # the file is truly hostile
    assert mark.exists()


@functools.cache
def saved_net(zipped):
    buffer = io.BytesIO()
    torch.save(Net(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@settings(max_examples=40)
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_module_is_refused_by_name(tmp_path_factory, zipped, where):
    path, whole = tmp_path_factory.mktemp("cut") / "net.pt", saved_net(zipped)
    path.write_bytes(whole[: int(where * len(whole))])
    with pytest.raises(ValueError, match=r"net\.pt"):
        unpickle.read_module(path)


def test_files_of_other_kinds_are_refused_by_name(tmp_path):
    (tmp_path / "text.pt").write_text("<html>404</html>")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name in ("text.pt", "other.pt", "empty.pt"):
        with pytest.raises(ValueError, match=name):
            unpickle.read_module(tmp_path / name)


def test_a_parameter_with_attributes_an_empty_tensor_and_passing_buffers(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))
    model[0].weight.tag = "mine"
    model[1].register_buffer("scratch", torch.ones(3), persistent=False)
    model.register_buffer("none", torch.empty(0))
    torch.save(model, tmp_path / "whole.pt")
    read = unpickle.read_module(tmp_path / "whole.pt")
    assert read.keys() == model.state_dict().keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
