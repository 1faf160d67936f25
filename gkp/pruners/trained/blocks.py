"""Residual blocks of any network that torch.fx can trace: which there are, and a network without some."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from gkp.nets import products
from gkp.nets.channels.layers import copied
from gkp.nets.channels.proof import must_agree
from gkp.nets.channels.replacement import replace_module
from gkp.nets.channels.tracing import Trace, UntraceableError, trace
from gkp.nets.models import Nothing
from gkp.pruners.common.registry import Cut

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
NORMS = (nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True)
class Block:
    """A residual block, x -> shortcut(x) + branch(x). last: the layer that gives the branch's output;
    layers: those of the branch that have parameters, `last` among them."""

    last: str
    layers: tuple[str, ...]


def residual_blocks(model: nn.Module) -> dict[str, Block]:
    """Blocks in the order of the network, by the name of their branch's last layer.

    A sum of two values makes a block when both are computed from one value x by nothing that is read
    elsewhere, and one of them, the branch, ends in a convolution or norm. Of two such branches that with
    more parameters is it; the other, which may be x itself, is the shortcut. All layers of the branch that
    have parameters must be convolutions and norms that are called once, without hooks. Empty for a network
    that torch.fx cannot trace, as for one without such sums.
    """
    try:
        traced = trace(model)
    except UntraceableError:
        return {}
    blocks = {}
    for node in traced.graph.nodes:
        called = node.op in ("call_function", "call_method") and node.target in SUMS
        if called and len(node.args) == len(node.all_input_nodes) == 2:
            block = _block(traced, node)
            if block is not None:
                blocks[block.last] = block
    return blocks


def _block(traced: Trace, node: fx.Node) -> Block | None:
    paths = [_path(node, end) for end in node.all_input_nodes]
    forks = [fork for _, fork in paths]
    if forks[0] is None or forks[0] is not forks[1]:
        return None
    sizes = [sum(_parameters(traced, n) for n in nodes) for nodes, _ in paths]
    if sizes[0] == sizes[1]:
        return None
    place = sizes.index(max(sizes))
    nodes, end = paths[place][0], node.all_input_nodes[place]
    layers = {str(n.target): traced.module(n) for n in nodes if _parameters(traced, n)}
    alone = all(module in traced.single and _nothing(module) is not None for module in layers.values())
    return Block(str(end.target), tuple(reversed(layers))) if alone and str(end.target) in layers else None


def _nothing(layer: nn.Module | None) -> Nothing | None:
    """Zeros of the shape that a convolution or norm gives; None for other layers."""
    if isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str):
        window = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return Nothing(layer.out_channels, *window)
    return Nothing() if isinstance(layer, NORMS) else None


def _path(node: fx.Node, end: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The nodes that serve `end` alone, last first, and the one that feeds them; None where several do.

    Where others than the sum `node` read `end`, there are no such nodes, and it feeds itself.
    """
    nodes: list[fx.Node] = []
    waiting, outside = [end], set()
    while waiting:
        candidate = waiting.pop(0)
        readers = {node} if candidate is end else {*nodes}
        if candidate.op != "placeholder" and {*candidate.users} <= readers and candidate not in nodes:
            nodes.append(candidate)
            waiting += candidate.all_input_nodes
    for inner in nodes:
        outside |= {*inner.all_input_nodes} - {*nodes}
    if not nodes:
        return [], end
    return nodes, next(iter(outside)) if len(outside) == 1 else None


def _parameters(traced: Trace, node: fx.Node) -> int:
    module = traced.module(node)
    return sum(parameter.numel() for parameter in module.parameters()) if module is not None else 0


@torch.no_grad()
def scale(layer: nn.Module, factor: Tensor) -> None:
    """Multiply the output of a convolution or norm by `factor`, (1,) or one number for each channel."""
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    weight.mul_(factor.to(weight).view(-1, *[1] * (weight.dim() - 1)))
    if bias is not None:
        bias.mul_(factor.to(bias))


def without_blocks(
    model: nn.Module, blocks: Mapping[str, Block], names: Collection[str], example_input: Tensor
) -> nn.Module:
    """A copy of `model` in which the branches of the named blocks give zero and cost nothing.

    ValueError where that is another network than the one whose branches are multiplied by zero.
    """
    pruned, reference = copied(model), copied(model)
    for name in names:
        for layer_name in blocks[name].layers:
            layer = pruned.get_submodule(layer_name)
            nothing = _nothing(layer)
            assert nothing is not None  # as `residual_blocks` found them
            replace_module(pruned, layer, nothing.train(layer.training))
        scale(reference.get_submodule(name), torch.zeros(1))
    must_agree(pruned, reference, example_input, "without its blocks")
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def block_cut(
    model: nn.Module,
    blocks: Mapping[str, Block],
    masks: Mapping[str, Tensor],
    scores: Mapping[str, float],
    example_input: Tensor,
) -> Cut:
    """Remove blocks of lowest score until a share `rate` of all blocks' multiply-adds is gone; one stays.

    A block that is worth more than what is left of that budget is passed over. The masks of those that stay
    go into their last layers.
    """
    names = [layer for block in blocks.values() for layer in block.layers]
    cost = products.by_layer(model, names, example_input)
    worth = {name: sum(cost[layer] for layer in block.layers) for name, block in blocks.items()}

    def cut(rate: float) -> nn.Module:
        budget, drop = rate * sum(worth.values()) * (1 + 1e-9), set[str]()
        for name in sorted(blocks, key=lambda name: scores[name]):
            if worth[name] <= budget and len(drop) < len(blocks) - 1:
                drop.add(name)
                budget -= worth[name]
        folded = copied(model)
        for name in masks.keys() - drop:
            scale(folded.get_submodule(name), masks[name])
        return without_blocks(folded, blocks, drop, example_input)

    return cut
