"""Rates, losses, evaluation and curves of the recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tests.recipes.programs  # noqa: F401  # isort: skip

from circle_kernels import circle_loss, class_circle_loss
from recipes import data
from recipes.__main__ import main
from recipes.configuration import Loss, Model, Training, read
from recipes.engine import training
from recipes.engine.evaluation import embed_pictures, pair_similarities, template_embeddings
from recipes.engine.objective import Objective, make_optimizer, rate_share, set_rates
from recipes.engine.processes import Processes
from recipes.models import Embedder
from tests.recipes.drawn import changes

CPU = torch.device("cpu")


def schedule(**values: Any) -> Training:
    return Training(**{"batch": 2, "steps": 100, "learning_rate": 0.1, **values})


def test_rates_fall_where_they_should() -> None:
    steps = schedule(schedule="steps", milestones=[0.5, 0.7, 0.9])
    shares = [rate_share(steps, step) for step in (0, 49, 50, 69, 70, 89, 90, 99)]
    assert shares == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    cosine = schedule(schedule="cosine", warmup=10)
    shares = [rate_share(cosine, step) for step in (0, 4, 9, 50, 99)]
    assert shares[:2] == pytest.approx([0.1, 0.5], rel=1e-2)
    assert shares[3] == pytest.approx(0.5)
    assert 0 < shares[4] < 1e-3
    assert rate_share(schedule(), 99) == 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_new_layers_have_a_rate_of_their_own(name: str) -> None:
    network = Embedder(Model(embedding=8))
    objective = Objective(Loss(name="am-softmax", m=0.35, gamma=64), 3, 8, processes=1)
    settings = schedule(optimizer=name, new_learning_rate=0.5, warmup=2, weight_decay=0.25)
    optimizer = make_optimizer(network, objective, settings)
    assert set_rates(optimizer, settings, 0) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.25]
    new = optimizer.param_groups[1]["params"]
    assert [tuple(each.shape) for each in new] == [(8, 128), (8,), (3, 8)]
    parameters = [*network.parameters(), *objective.parameters()]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(parameters)


def test_losses_are_those_of_the_package() -> None:
    torch.manual_seed(0)
    embeddings, labels = torch.randn(12, 8), torch.arange(12) % 3
    pairs = Objective(Loss(name="circle", m=0.4, gamma=80), 3, 8, processes=1)
    assert pairs(embeddings, labels) == circle_loss(embeddings, labels, m=0.4, gamma=80)
    assert not list(pairs.parameters())
    both = Objective(Loss(name="class-circle", m=0.25, gamma=32, softmax_weight=2), 3, 8, 1)
    weight, linear = both.parameters()
    wanted = class_circle_loss(embeddings, labels, weight, m=0.25, gamma=32)
    wanted = wanted + 2 * F.cross_entropy(embeddings @ linear.T, labels)
    torch.testing.assert_close(both(embeddings, labels), wanted)
    arcface = Objective(Loss(name="arcface", m=0.5, gamma=64), 3, 8, processes=1)
    cosines = F.normalize(embeddings) @ F.normalize(next(arcface.parameters())).T
    own = F.one_hot(labels, 3).bool()
    logits = 64 * torch.where(own, (cosines.acos() + 0.5).cos(), cosines)
    torch.testing.assert_close(
        arcface(embeddings, labels), F.cross_entropy(logits, labels), rtol=1e-4, atol=1e-4
    )


def test_template_is_the_mean_of_the_means_of_its_media() -> None:
    embeddings = torch.tensor([[3.0, 0], [1, 0], [0, 8], [5, 0], [0, -2]])
    templates, media = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([7, 7, 8, 7, 9])
    found = template_embeddings(embeddings, templates, media)
    # Of template 0: (2, 0) of the video 7 and (0, 8) of the picture 8.
    wanted = F.normalize(torch.tensor([[1.0, 4], [1, 0], [0, -1]]), dim=1)
    torch.testing.assert_close(found, wanted)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 2]])
    torch.testing.assert_close(
        pair_similarities(found, pairs), (wanted[pairs[:, 0]] * wanted[pairs[:, 1]]).sum(1)
    )


@pytest.mark.parametrize("mirrored", [False, True])
def test_embeddings_do_not_depend_on_batches(
    mirrored: bool, data_of: Callable[[str], Path]
) -> None:
    torch.manual_seed(0)
    found = []
    network = Embedder(Model(embedding=8)).eval()
    for batch in (5, 1000):
        mirror = f"evaluation.mirrored={str(mirrored).lower()}"
        options = ["run.workers=0", f"evaluation.batch={batch}", mirror]
        recipe = read("cub", ["model.embedding=8", "data.height=32", "data.width=32", *options])
        pictures = data.load(recipe.data, data_of("cub")).train
        found.append(embed_pictures(network, pictures, recipe, Processes(0, 1, CPU)))
    assert found[0].shape == (24, 8)
    torch.testing.assert_close(found[0], found[1])
    images = torch.stack([data.images.EvaluatedPictures(pictures, recipe.data)[i] for i in (0, 9)])
    with torch.no_grad():
        wanted = network(images) + (network(images.flip(3)) if mirrored else 0)
    torch.testing.assert_close(found[0][[0, 9]], wanted)


def test_curves_are_written_where_they_are_asked_for(
    data_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, float, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0.0, 0))

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    options = changes("cub", "run.tensorboard=true", "run.evaluate_every=2")
    main(["cub", f"--data={data_of('cub')}", f"--out={tmp_path}", *options])
    names = [(name, step) for name, _, step in written]
    assert [each for each in names if each[0] == "loss"] == [("loss", step) for step in range(1, 5)]
    assert [each for each in names if each[0] == "recall@1"] == [("recall@1", 2)]
    assert names[-1] == ("closed", 0)


def test_curves_without_tensorboard_say_what_to_install(
    data_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    options = changes("cub", "run.tensorboard=true")
    with pytest.raises(SystemExit, match="takes tensorboard: pip install tensorboard"):
        main(["cub", f"--data={data_of('cub')}", f"--out={tmp_path}", *options])


def test_evaluation_during_a_training_leaves_it_as_it_is(
    data_of: Callable[[str], Path], tmp_path: Path
) -> None:
    for every in (0, 1):
        options = changes("market", f"run.evaluate_every={every}", "model.head=linear-norm")
        out = tmp_path / str(every)
        main(["market", f"--data={data_of('market')}", f"--out={out}", *options])
    results = [(tmp_path / every / "results.json").read_text("utf-8") for every in ("0", "1")]
    assert results[0] == results[1]


def test_loss_that_is_no_number_ends_the_training(
    data_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: images.mean((2, 3)).requires_grad_() * torch.nan

    monkeypatch.setattr(training, "_embedding_function", broken)
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan"):
        main(["cub", f"--data={data_of('cub')}", f"--out={tmp_path}", *changes("cub")])
    assert not list(tmp_path.glob("*.pt"))
