"""Multiply-adds of linear maps, attention and recurrent layers, however a network comes to them."""

import pytest
import torch
import torch.nn.functional as F
from called_nets import Net
from torch import Tensor, nn

from gkp.nets import cost
from gkp.nets.products import _formulas


def attention(inner) -> Net:
    return Net(lambda net, x: inner(net, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))


def encoder(**options) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options), 2)


def sdpa(net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.view(1, 2, 5, 4) for _ in range(3)), is_causal=net.causal)


def grouped_queries(net, x: Tensor) -> Tensor:
    few = x.view(1, 5, 2, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(few.repeat(1, 2, 1, 1), few, few, enable_gqa=True)


PROJECTED, ATTENDED = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
BLOCK = PROJECTED + ATTENDED + 2 * 5 * 8 * 16
mask = torch.zeros(5, 5)
TOKENS = {  # on five tokens (1, 5, 8)
    "linear": (lambda: nn.Linear(8, 3), 5 * 24),
    "linear without bias": (lambda: nn.Linear(8, 3, bias=False), 5 * 24),
    "matmul": (lambda: Net(lambda n, x: x @ n.a.weight.T, a=nn.Linear(8, 3)), 5 * 24),
    "einsum": (lambda: Net(lambda n, x: torch.einsum("btc,oc->bto", x, n.a.weight), a=nn.Linear(8, 3)), 120),
    "vector": (lambda: Net(lambda n, x: x[0] @ n.a.weight[0], a=nn.Linear(8, 3)), 40),
    "dot": (lambda: Net(lambda n, x: torch.dot(x[0, 0], n.a.weight[0]), a=nn.Linear(8, 3)), 8),
    "bilinear": (lambda: Net(lambda n, x: n.a(x, x[..., :4]), a=nn.Bilinear(8, 4, 3)), 5 * 8 * 4 * 3),
    "conv1d": (lambda: nn.Conv1d(5, 4, 3), 4 * 5 * 3 * 6),
    "conv3d": (lambda: Net(lambda n, x: n.a(x.view(1, 1, 5, 4, 2)), a=nn.Conv3d(1, 6, 2)), 6 * 8 * 4 * 3 * 1),
    "batched products": (lambda: Net(lambda n, x: torch.baddbmm(x[..., :5], x, x.mT)), 5 * 5 * 8),
    "attention, fast": (
        lambda: attention(lambda n, x: n.a(x, x, x, need_weights=False)),
        PROJECTED + ATTENDED,
    ),
    "attention, weights": (lambda: attention(lambda n, x: n.a(x, x, x)), PROJECTED + ATTENDED),
    "attention, keywords": (
        lambda: attention(lambda n, x: n.a(query=x, key=x, value=x, attn_mask=mask)),
        PROJECTED + ATTENDED,
    ),
    "cross attention": (
        lambda: attention(lambda n, x: n.a(x, x[:, :3], x[:, :3])),
        (5 + 3 + 3 + 5) * 64 + 2 * 5 * 3 * 8,
    ),
    "encoder": (encoder, 2 * BLOCK),
    "encoder, norm first": (lambda: encoder(norm_first=True, activation="gelu"), 2 * BLOCK),
    "lstm": (lambda: nn.LSTM(8, 4, batch_first=True), 5 * 16 * (8 + 4)),
    "lstm, two layers and ways": (
        lambda: nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True),
        5 * 2 * 16 * (8 + 4 + 8 + 4),
    ),
    "gru": (lambda: nn.GRU(8, 4, batch_first=True), 5 * 12 * (8 + 4)),
    "grouped queries": (lambda: Net(grouped_queries), 2 * 4 * 5 * 5 * 4),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("case", TOKENS)
def test_linear_maps_and_attention_in_every_form(case: str) -> None:
    make, expected = TOKENS[case]
    model, x = make(), torch.rand(1, 5, 8)
    assert cost.count(model, x).macs == expected
    with torch.inference_mode():
        assert cost.count(model, x).macs == expected
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # then PyTorch's fused encoder would run
    assert cost.count(model.eval(), x).macs == expected
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fused_attention_counts_all_pairs_of_tokens(causal: bool, dtype: torch.dtype) -> None:
    model = Net(sdpa)
    model.causal = causal
    assert cost.count(model, torch.rand(1, 5, 8).to(dtype)).macs == 2 * 2 * 5 * 5 * 4
    backend = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with backend:
        assert cost.count(model, torch.rand(1, 5, 8).to(dtype)).macs == 2 * 2 * 5 * 5 * 4


def test_rows_of_a_recurrent_network_count_each() -> None:
    model = Net(lambda net, x: net.a(x.view(6, 5, 8)), a=nn.LSTM(8, 4, batch_first=True))
    assert cost.count(model, torch.rand(1, 3, 10, 8)).macs == 6 * 5 * 16 * 12


def test_the_recurrent_kernel_of_gpus_costs_what_that_of_cpus_does() -> None:
    lstm = nn.LSTM(8, 4)
    formula = _formulas()[torch.ops.aten._cudnn_rnn]
    assert formula(torch.rand(5, 2, 8), list(lstm.parameters()), 4, None) == 2 * 5 * 16 * 12
