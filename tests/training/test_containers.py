"""What in_chunks cuts and puts together beside plain tensors."""

from __future__ import annotations

import copy
import functools
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from circle_kernels import in_chunks

Pair = namedtuple("Pair", "first second")


class Encoder(nn.Module):
    """As text encoders are called, and as they answer: they write into what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(
        self,
        features: dict[str, Tensor],
        pair: Pair,
        scale: Tensor,  # ()
        *,
        power: int = 1,
        bias: Tensor | None = None,  # (4,)
    ) -> dict[str, Any]:
        tokens = self.table(features["input_ids"]) * features["attention_mask"][..., None]
        pooled = self.norm(tokens.sum(1) * scale + pair.first - pair.second)
        if bias is not None:
            pooled = pooled + bias
        assert "pooled" not in features
        features.update(pooled=pooled**power, lengths=features["attention_mask"].sum(1))
        features["prompt_length"], features["nothing"] = 3, None
        return {**features, "twice": (pooled, [pooled * 2])}

    def encode(self, input_ids: Tensor) -> Tensor:
        return self.norm(self.table(input_ids).sum(1))


def encoder_inputs(rows: int = 10) -> tuple[dict[str, Tensor], Pair, Tensor]:
    torch.manual_seed(3)
    features = {
        "input_ids": torch.randint(11, (rows, 5)),
        "attention_mask": torch.randint(2, (rows, 5)),
    }
    return features, Pair(torch.randn(rows, 4), torch.randn(rows, 1)), torch.tensor(1.5)


def test_containers_are_cut_and_joined() -> None:
    torch.manual_seed(0)
    encoder = Encoder()
    other = copy.deepcopy(encoder)
    features, pair, scale = encoder_inputs()
    ours = in_chunks(encoder, features, pair, scale, power=2, chunk_size=4)
    assert set(features) == {"input_ids", "attention_mask"}
    parts = []
    for rows in torch.arange(10).tensor_split(3):
        cut = {name: values[rows] for name, values in features.items()}
        parts.append(other(cut, Pair(*(values[rows] for values in pair)), scale, power=2))
    assert ours["prompt_length"] == 3
    assert ours["nothing"] is None
    for name in ("input_ids", "attention_mask", "pooled", "lengths"):
        assert torch.equal(ours[name], torch.cat([part[name] for part in parts]))
    first, (second,) = ours["twice"]
    assert torch.equal(second, 2 * first)
    for output in (ours["pooled"], torch.cat([part["pooled"] for part in parts])):
        output.pow(2).sum().backward()
    assert torch.equal(encoder.table.weight.grad, other.table.weight.grad)
    assert encoder.table.weight.grad.abs().max() > 0
    assert torch.equal(encoder.norm.running_mean, other.norm.running_mean)


def test_methods_and_what_every_chunk_gets_whole() -> None:
    torch.manual_seed(0)
    encoder = Encoder()
    features, pair, scale = encoder_inputs()
    bias = torch.randn(4, requires_grad=True)
    whole = functools.partial(encoder, bias=bias)
    in_chunks(whole, features, pair, scale, chunk_size=4)["pooled"].sum().backward()
    assert torch.allclose(bias.grad, torch.full((4,), 10.0))
    assert int(encoder.norm.num_batches_tracked) == 3
    in_chunks(encoder.encode, features["input_ids"], chunk_size=4).sum().backward()
    assert int(encoder.norm.num_batches_tracked) == 6


def test_outputs_of_transformers() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, rows: Tensor) -> Any:
            hidden = self.linear(rows)
            return outputs.BaseModelOutputWithPooling(hidden[:, None], hidden)

    model, rows = Model(), torch.randn(9, 4)
    joined = in_chunks(model, rows, chunk_size=4)
    assert isinstance(joined, outputs.BaseModelOutputWithPooling)
    torch.testing.assert_close(joined.pooler_output, model.linear(rows))
    assert joined.last_hidden_state.shape == (9, 1, 3)


def test_pytrees_of_the_inputs_are_those_of_torch() -> None:
    """The paths in messages are built on these names, which torch may change."""
    named, _ = pytree.tree_flatten_with_path(((1, {"a": 2}), {"b": 3}))
    assert [pytree.keystr(path) for path, _ in named] == ["[0][0]", "[0][1]['a']", "[1]['b']"]
