"""The examples on names: what training brings, short runs, what fonts can draw."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tests.examples.programs  # noqa: F401  # isort: skip

import name_retrieval
from names import data, figures, fonts, report, training
from names.network import embed, new_network
from rich.console import Console

from circle_kernels.evaluation import retrieval_metrics

SHORT = training.Settings(steps=3, entities_per_batch=8, names_per_entity=4)


@pytest.fixture(scope="module")
def small_split(all_names: data.NameSet) -> data.EntitySplit:
    """200 entities to train on, 30 to test."""
    split = data.split_entities(all_names)
    return data.EntitySplit(
        train=split.train.select(torch.arange(200)),
        validation=split.validation,
        test=split.test.select(torch.arange(30)),
    )


@pytest.fixture
def few_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure of fewer names is drawn faster."""
    monkeypatch.setattr(figures, "SCRIPTS", {"LATIN": "Latin", "GREEK": "Greek"})
    monkeypatch.setattr(figures, "NEIGHBORS", 2)


def test_training_helps_to_retrieve_unseen_entities(small_split: data.EntitySplit) -> None:
    names, labels = small_split.test.names_and_labels()
    network = new_network(0)
    before = retrieval_metrics(embed(network, names), labels)
    settings = replace(SHORT, steps=60, entities_per_batch=32)
    losses = training.train(network, small_split.train, settings, seed=0)
    after = retrieval_metrics(embed(network, names), labels)
    assert after["recall@1"] > 1.15 * before["recall@1"]
    assert after["map@r"] > 1.5 * before["map@r"]
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_same_seed_gives_the_same_network(small_split: data.EntitySplit) -> None:
    networks = []
    for seed in (1, 1, 2):
        network = new_network(seed)
        training.train(network, small_split.train, SHORT, seed)
        networks.append(embed(network, ["Zulu", "зулу"]))
    assert networks[0].equal(networks[1])
    assert not networks[0].equal(networks[2])


def test_embedding_does_not_depend_on_the_names_beside_it() -> None:
    network = new_network(0)
    alone = embed(network, ["Zulu"])
    beside = embed(network, ["Zulu", "what is much longer than this"])
    torch.testing.assert_close(alone[0], beside[0])


def test_embeddings_that_are_not_finite_are_an_error() -> None:
    network = new_network(0)
    with torch.no_grad():
        network.embed.bias[3] = torch.inf
    with pytest.raises(ValueError, match="embeddings must be finite"):
        embed(network, ["Zulu"])


@pytest.mark.usefixtures("few_to_draw")
@pytest.mark.parametrize("seeds", [1, 2])
def test_short_run_prints_its_table_and_writes_its_figure(
    seeds: int, small_split: data.EntitySplit, tmp_path: Path
) -> None:
    folder, saved = tmp_path / "new" / "folder", tmp_path / "all.pt"
    arguments = ["--seeds", str(seeds), "--out", str(folder), "--all-names", str(saved)]
    printed = io.StringIO()
    path = name_retrieval.run(
        SHORT,
        small_split,
        name_retrieval.parse_arguments(arguments),
        Console(file=printed, width=100),
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    text = printed.getvalue()
    for expected in ("30 entities never seen", "n-grams, read", "untrained", "circle loss"):
        assert expected in text
    assert text.count("±") == (0 if seeds == 1 else 2 * 3 + 1)
    many = torch.load(saved)
    assert many["embeddings"].shape == (len(many["labels"]), 128)
    counts = [len(entity.names) for entity in small_split.test.entities]
    assert many["labels"].bincount().tolist() == counts


def test_arguments_become_the_settings(
    all_names: data.NameSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    runs = []
    monkeypatch.setattr(name_retrieval, "load_locales", dict)
    monkeypatch.setattr(name_retrieval, "name_set", lambda locales: all_names)
    monkeypatch.setattr(name_retrieval, "run", lambda *given: runs.append(given[:3]))
    name_retrieval.main(["--steps=7", "--gamma=32", "--split=random", "--part=validation"])
    ((settings, split, parsed),) = runs
    assert settings == training.Settings(steps=7, gamma=32.0)
    assert split.test.entities == data.split_entities(all_names, "random").test.entities
    assert parsed.part == "validation"
    assert f"names of {len(all_names):,} entities" in capsys.readouterr().out


def test_table_has_mean_and_deviation_over_the_seeds(small_split: data.EntitySplit) -> None:
    runs = [dict.fromkeys(report.METRICS, value) for value in (0.1, 0.2, 0.3)]
    printed = io.StringIO()
    table = report.metrics_table(small_split.test, {"one": runs[:1], "three": runs})
    Console(file=printed, width=100).print(table)
    assert printed.getvalue().count("0.200 ± 0.100") == 3
    assert printed.getvalue().count("0.100 ") == 6


@pytest.mark.parametrize(
    ("text", "script"),
    [("Zulu", "LATIN"), ("«Зулу»", "CYRILLIC"), ("줄루", "HANGUL"), ("中国", "CJK"), ("12", "")],
    ids=["latin", "quoted", "hangul", "chinese", "numbers"],
)
def test_script_is_that_of_the_first_letter(text: str, script: str) -> None:
    assert fonts.script_of(text) == script


def test_text_is_drawn_only_with_fonts_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [entry for entry in fonts._candidates() if entry.name == "DejaVu Sans"]
    monkeypatch.setattr(fonts, "_candidates", lambda: ours)
    assert fonts.families("Zulu Зулу") == ["DejaVu Sans"]
    assert fonts.families("Zulu 中国") == []
    monkeypatch.setattr(fonts, "SHAPES", False)
    assert fonts.families("Зулу") == ["DejaVu Sans"]
    assert fonts.families("زولو") == []


def test_scripts_without_fonts_are_left_out_and_named(
    small_split: data.EntitySplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "families", lambda text: [])
    names, _ = small_split.test.names_and_labels()
    embeddings = embed(new_network(0), names)
    rows = {"n-grams": [dict.fromkeys(report.METRICS, 0.5)]}
    path = tmp_path / "figure.png"
    missing = figures.save_figure(path, rows, small_split.test, embeddings, seed=0)
    assert {"Latin", "Cyrillic", "Arabic"} <= set(missing)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_language_and_its_script_have_different_titles(all_names: data.NameSet) -> None:
    titles = figures._different_titles(all_names)
    assert {"Thai (language)", "Thai (script)", "Germany"} <= set(titles)
