"""ONNX graphs of dense networks, and the same graphs with layers in other forms.

torch.onnx takes long for a large network, so that it runs once; the forms are put in node by node.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gkp.deploy.forms import span
from gkp.deploy.grouping import Grouping

INPUT, OUTPUT = "input", "output"
OPSET, FORMAT = 20, 9  # of ONNX and of its files, for graphs that are not torch.onnx's
MOST = 2**31 - 1  # bytes of a file, by its format


@dataclass(frozen=True)
class Graph:
    """An onnx.ModelProto, and the names of the layers in it that `with_forms` can give another form."""

    proto: Any
    layers: frozenset[str]


def exported(network: nn.Module, x: Tensor) -> Graph:
    """The graph of `network` for inputs of the shape of x; ValueError for what has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporter itself uses
            program = torch.onnx.export(
                network, (x,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"torch.onnx cannot export this {type(network).__name__}: {reason}; a forward that branches on "
            'values has no graph: take the branch out, or use runtime="torch" or the network itself'
        ) from error
    assert program is not None  # None is for the old exporter
    proto = program.model_proto
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > MOST:
        raise ValueError('the weights take more than 2 GB, which no ONNX file holds: use runtime="torch"')
    return Graph(proto, _named_layers(proto, network))


def chain(network: nn.Sequential, x: Tensor) -> Graph:
    """The graph of convolutions and linear layers one after the other, without torch.onnx."""
    from onnx import TensorProto, helper

    with torch.no_grad():
        shape = network(x).shape
    nodes: list[Any] = []
    tensors: dict[str, Tensor] = {}
    inlet = INPUT
    for name, layer in network.named_children():
        outlet = OUTPUT if layer is network[-1] else f"{name}.out"
        place = _Place(inlet, outlet, f"{name}.", *_operator(layer))
        made, new = _product(place, layer.weight, layer.bias, 1)  # type: ignore[arg-type]
        nodes, tensors, inlet = [*nodes, *made], tensors | new, outlet
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape)],
        _initializers(tensors),
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=FORMAT)
    return Graph(proto, frozenset(name for name, _ in network.named_children()))


def _named_layers(proto: Any, network: nn.Module) -> frozenset[str]:
    """Convolutions and linear layers of `network` that are one node with their own weight and bias.

    The exporter may have merged others with what follows them, under their names. A layer that runs twice is
    two nodes of one weight, and stays as the exporter wrote it.
    """
    from onnx import numpy_helper

    modules, values = dict(network.named_modules()), {t.name: t for t in proto.graph.initializer}
    readers = Counter(key for node in proto.graph.node for key in node.input)
    names = set()
    for node in proto.graph.node:
        name = _layer(node)
        layer = modules.get(name)
        kind = nn.Conv2d if node.op_type == "Conv" else nn.Linear
        if not isinstance(layer, kind) or readers[node.input[1]] > 1:
            continue
        held = [numpy_helper.to_array(values[key]) for key in node.input[1:] if key in values]
        none = np.zeros(len(layer.weight), np.float32)  # a bias of zeros is left out, too
        parameters = [
            layer.weight.detach().numpy(),
            none if layer.bias is None else layer.bias.detach().numpy(),
        ]
        if len(held) == len(node.input) - 1 and all(map(np.array_equal, parameters, [*held, none])):
            names.add(name)
    return frozenset(names)


def _layer(node: Any) -> str:
    """The name of the layer whose weight a convolution or a product reads; else empty."""
    return node.input[1].removesuffix(".weight") if node.op_type in ("Conv", "Gemm") else ""


def with_forms(
    graph: Graph, network: nn.Module, grouped: Mapping[str, Grouping], forms: Mapping[str, str]
) -> Any:
    """`graph` with the weights of `network` in all its `layers`, and those in `forms` in these forms.

    network: of the same structure as the one that the graph was made of; weights and widths may differ.
    """
    import onnx

    new = onnx.ModelProto()
    new.CopyFrom(graph.proto)
    del new.graph.node[:], new.graph.value_info[:]
    modules = dict(network.named_modules())
    tensors: dict[str, Tensor] = {}
    for node in graph.proto.graph.node:
        name = _layer(node)
        if name not in graph.layers:
            new.graph.node.append(node)
            continue
        nodes, values = _in_form(node, name, modules[name], grouped.get(name), forms.get(name, "dense"))
        new.graph.node.extend(nodes)
        tensors |= values
    used = {name for node in new.graph.node for name in node.input}
    unchanged = [t for t in graph.proto.graph.initializer if t.name in used and t.name not in tensors]
    del new.graph.initializer[:]
    new.graph.initializer.extend([*unchanged, *_initializers(tensors)])
    return new


class _Place(NamedTuple):
    """Where an operator stands: what it reads and writes, how its tensors' names begin, its attributes."""

    inlet: str
    outlet: str
    prefix: str
    kind: str
    attributes: Mapping[str, Any]


def _in_form(
    node: Any, name: str, layer: nn.Module, grouping: Grouping | None, form: str
) -> tuple[list[Any], dict[str, Tensor]]:
    """Nodes that compute the layer in its form from the input to the output of `node`, and their tensors."""
    from onnx.helper import get_attribute_value

    attributes = {a.name: get_attribute_value(a) for a in node.attribute}
    groups = attributes.pop("group", 1)
    place = _Place(node.input[0], node.output[0], f"{name}.", node.op_type, attributes)
    weight = layer.get_parameter("weight").detach()
    bias = layer.get_parameter("bias").detach() if layer.bias is not None else None
    if grouping is None or form == "dense":
        return _product(place, weight, bias, groups)
    if form == "grouped":
        grouping = grouping.even or grouping
    parts = [grouping.part(weight, group) for group in range(len(grouping.filters))]
    together = f"{name}.rows" if grouping.back is not None else place.outlet
    if form == "grouped":
        groups = len(parts)
        jobs = [(torch.cat(parts), torch.cat(grouping.channels), grouping.order, together)]
    else:
        outlets = [f"{name}.{group}.out" for group in range(len(parts))] if len(parts) > 1 else [together]
        jobs = list(zip(parts, grouping.channels, grouping.filters, outlets, strict=True))
    nodes: list[Any] = []
    tensors: dict[str, Tensor] = {}
    for number, (kernels, channels, filters, outlet) in enumerate(jobs):
        prefix = f"{name}.{number}."
        taken, more, values = _taken(place.inlet, channels, weight.shape[1], prefix)
        part = place._replace(inlet=taken, outlet=outlet, prefix=prefix)
        made, new = _product(part, kernels, None if bias is None else bias[filters], groups)
        nodes += [*more, *made]
        tensors |= values | new
    nodes += _joined([job[3] for job in jobs], together, place.outlet, grouping, name, tensors)
    return nodes, tensors


def _joined(
    parts: Sequence[str],
    together: str,
    outlet: str,
    grouping: Grouping,
    name: str,
    tensors: dict[str, Tensor],
) -> Iterator[Any]:
    """Concatenation of the parts, and the order of the filters; its index goes into `tensors`."""
    from onnx import helper

    if len(parts) > 1:
        yield helper.make_node("Concat", parts, [together], name=f"{name}.Concat", axis=1)
    if grouping.back is not None:
        tensors[f"{name}.back"] = grouping.back
        yield helper.make_node("Gather", [together, f"{name}.back"], [outlet], name=f"{name}.Back", axis=1)


def _taken(
    inlet: str, channels: Tensor, inputs: int, prefix: str
) -> tuple[str, list[Any], dict[str, Tensor]]:
    """Where some channels of `inlet` are found, the node that takes them, and its tensors."""
    from onnx import helper

    place = span(channels)
    if place == (0, inputs):
        return inlet, [], {}
    outlet = f"{prefix}in"
    if place is None:
        names, values = [f"{prefix}channels"], [channels]
        node = helper.make_node("Gather", [inlet, *names], [outlet], name=f"{prefix}Gather", axis=1)
    else:
        names = [f"{prefix}{end}" for end in ("first", "end", "axis")]
        values = [torch.tensor([number]) for number in (place[0], sum(place), 1)]
        node = helper.make_node("Slice", [inlet, *names], [outlet], name=f"{prefix}Slice")
    return outlet, [node], dict(zip(names, values, strict=True))


def _product(
    place: _Place, weight: Tensor, bias: Tensor | None, groups: int
) -> tuple[list[Any], dict[str, Tensor]]:
    """A convolution or a linear layer, and its tensors."""
    from onnx import helper

    tensors = {f"{place.prefix}weight": weight} | ({} if bias is None else {f"{place.prefix}bias": bias})
    attributes = dict(place.attributes) | ({"group": groups} if place.kind == "Conv" else {})
    inputs, name = [place.inlet, *tensors], f"{place.prefix}{place.kind}"
    return [helper.make_node(place.kind, inputs, [place.outlet], name=name, **attributes)], tensors


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """Operator and attributes of a convolution without groups, or of a linear layer."""
    if not isinstance(layer, nn.Conv2d):
        return "Gemm", {"transB": 1}
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding == "same":
        pads = [*(s // 2 for s in spans), *(s - s // 2 for s in spans)]
    else:
        pads = [0] * 4 if layer.padding == "valid" else [int(p) for p in (*layer.padding, *layer.padding)]
    shape = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation}
    return "Conv", {**shape, "pads": pads}


def _initializers(tensors: Mapping[str, Tensor]) -> list[Any]:
    from onnx import numpy_helper

    return [
        numpy_helper.from_array(tensor.detach().contiguous().numpy(), name)
        for name, tensor in tensors.items()
    ]
