"""Which layer feeds which, for rewriting that must not change what a network computes.

The graph is torch.fx's. What it does not show is asked as well: layers that run twice or are read from
elsewhere, hooks that see what lies between two layers, weights that two layers share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from gkp.nets.channels.copying import copied
from gkp.nets.channels.replacement import hooked, shared_weights
from gkp.nets.grouped_base import GroupedKernels


class UntraceableError(ValueError):
    """torch.fx cannot follow the forward of a network."""


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # a forward that reads a running mean shows that in the graph

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if isinstance(module, GroupedKernels) or super().is_leaf_module(module, qualified_name):
            return True
        # A layer of torch's that somebody derived from: one call, which may compute something else.
        kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
        derived = any(kind.__module__.startswith("torch.nn.modules") for kind in kinds)
        return derived and not isinstance(module, nn.Sequential) and not list(module.children())


@dataclass(frozen=True)
class Trace:
    """The graph of one network in one mode, and the layers in it that may be rewritten alone."""

    graph: fx.Graph
    modules: dict[str, nn.Module]  # under all names
    single: set[nn.Module]  # called once, read and shared by nobody, without hooks

    def module(self, node: fx.Node) -> nn.Module | None:
        """The layer that `node` calls."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def follower(self, node: fx.Node) -> fx.Node | None:
        """The one node that reads the output of `node`, when nothing else sees what passes between them."""
        if len(node.users) != 1:
            return None
        after = next(iter(node.users))
        crossed = _containers(node) ^ _containers(after)  # containers that end or begin between the two
        leaves = {str(each.target) for each in (node, after) if each.op == "call_module"}
        seen = any(name in self.modules and hooked(self.modules[name]) for name in crossed - leaves)
        return None if seen or after.all_input_nodes != [node] else after


def _containers(node: fx.Node) -> set[str]:
    return {name for name, _ in node.meta.get("nn_module_stack", {}).values()}


def trace(model: nn.Module, *, training: bool | None = None) -> Trace:
    """The trace of `model`, which stays as it is, in its own mode or in the one given.

    UntraceableError, a ValueError, for a forward that branches on its input or fails on symbols.
    """
    dummy = copied(model)  # a forward may keep what it computes, and here that is no tensor
    if training is not None:
        dummy.train(training)
    try:
        graph = _Tracer().trace(dummy)
    except Exception as error:  # whatever a forward raises that meets a symbol
        raise UntraceableError(f"torch.fx cannot trace this {type(model).__name__}: {error}") from error
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(modules.get(str(node.target)) for node in graph.nodes if node.op == "call_module")
    read = {modules.get(str(node.target).rpartition(".")[0]) for node in graph.nodes if node.op == "get_attr"}
    shared = shared_weights(model)
    single = {
        module
        for name, module in modules.items()
        if calls[module] == 1 and module not in read and name not in shared and not hooked(module)
    }
    return Trace(graph, modules, single)
