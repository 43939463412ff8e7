# ruff: noqa: E402
"""The benchmark harness: its data, its stopwatch, its memory gauge and what it writes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch

# The harness has dependencies of its own: pip install -e '.[bench]'.
for _module in ("matplotlib", "psutil", "rich", "tqdm"):
    pytest.importorskip(_module)

from bench import __main__ as cli
from bench.classes import command as classes
from bench.gpu import command as gpu
from bench.kernels import command as kernels
from bench.launches import command as launches
from bench.loss import command as loss
from bench.loss.tables import loss_tables, read_loss
from bench.measuring import memory
from bench.measuring.cases import Case
from bench.measuring.data import REGIMES, at_cosine, make_data
from bench.measuring.sweep import Method, time_case
from bench.measuring.timing import CpuClock, Effort, time_interleaved
from bench.measuring.variants import VARIANTS, Function, Variant, naive_loss
from bench.reporting import command as report
from bench.reporting import results
from bench.reporting.errors import UserError
from bench.reporting.markers import replace_blocks
from bench.reporting.spread import ratio, spread
from bench.reporting.tables import number
from bench.tune import command as tune


@pytest.mark.parametrize("regime", REGIMES)
def test_data_is_fixed_by_the_seed_and_has_four_rows_per_class(regime: str) -> None:
    embeddings, labels = make_data(regime, 64, 16, seed=3)
    again, _ = make_data(regime, 64, 16, seed=3)
    other, _ = make_data(regime, 64, 16, seed=4)
    assert torch.equal(embeddings, again)
    assert not torch.equal(embeddings, other)
    assert embeddings.requires_grad
    assert embeddings.shape == (64, 16)
    assert torch.equal(labels.unique(return_counts=True)[1], torch.full((16,), 4))


def test_data_takes_rows_that_four_does_not_divide_and_other_dtypes() -> None:
    embeddings, labels = make_data("trained", 7, 8, dtype=torch.bfloat16)
    assert embeddings.shape == (7, 8)
    assert embeddings.dtype == torch.bfloat16
    assert labels.unique(return_counts=True)[1].sort().values.tolist() == [3, 4]


def test_random_data_is_standard_normal() -> None:
    embeddings, _ = make_data("random", 512, 128)
    assert embeddings.mean().abs() < 0.02
    assert abs(embeddings.std() - 1) < 0.02


def test_at_cosine_keeps_unit_length_and_the_cosine() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(50, 8), dim=1)
    turned = at_cosine(vectors, 0.8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(50))
    torch.testing.assert_close((turned * vectors).sum(1), torch.full((50,), 0.8))


def test_trained_data_has_the_stated_cosines() -> None:
    embeddings, labels = make_data("trained", 400, 2048)
    embeddings = embeddings.detach()
    one_hot = torch.nn.functional.one_hot(labels).float()
    # Noise is nearly orthogonal in so many dimensions: members of two classes lie at 0.8 squared
    # times the cosine of their centres.
    between = (one_hot.T @ (embeddings @ embeddings.T) @ one_hot) / 16 / 0.8**2
    within = (one_hot.T @ embeddings).square().sum(1).sub(4).div(12) / 0.8**2
    torch.testing.assert_close(within, torch.ones(100), atol=0.05, rtol=0)
    between.fill_diagonal_(0)
    confusable = between > 0.25
    assert torch.equal(confusable.sum(1), torch.ones(100, dtype=torch.int64))
    torch.testing.assert_close(between[confusable], torch.full((100,), 0.5), atol=0.1, rtol=0)
    assert between[~confusable].abs().max() < 0.2
    # Four rows of a class stand together, and a confusable class is seldom the next one.
    blocks = labels.view(-1, 4)
    assert (blocks == blocks[:, :1]).all()
    assert (confusable[blocks[:-1, 0], blocks[1:, 0]]).sum() < 10


class _FakeWork:
    compiles = False

    def __init__(self, name: str, log: list[str], has_backward: bool = True) -> None:
        self.name, self.log, self.has_backward = name, log, has_backward

    def reset(self) -> None:
        self.log.append(f"{self.name} reset")

    def forward(self) -> torch.Tensor:
        self.log.append(f"{self.name} forward")
        return torch.zeros(())

    def backward(self, loss: torch.Tensor) -> None:
        self.log.append(f"{self.name} backward")


def test_rounds_go_through_all_variants_in_turn() -> None:
    log: list[str] = []
    works = {name: _FakeWork(name, log) for name in "ab"}
    effort = Effort(seconds=1e-9, min_rounds=3, max_rounds=9)
    time_interleaved(works, {"a": 1.0, "b": 1.0}, effort, CpuClock())
    one_round = [f"{name} {step}" for name in "ab" for step in ("reset", "forward", "backward")]
    assert log == one_round * 3


def test_short_steps_are_repeated_and_a_product_has_no_backward() -> None:
    log: list[str] = []
    works = {"mm": _FakeWork("mm", log, has_backward=False)}
    effort = Effort(min_rounds=2, max_rounds=2, sample_seconds=0.01)
    samples = time_interleaved(works, {"mm": 0.0025}, effort, CpuClock())["mm"]
    assert samples.repeats == 4
    assert log.count("mm forward") == 8
    assert len(samples.forward) == 2
    assert samples.forward_backward == []


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was slow for both, which a ratio of medians would not see.
    found = ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found is not None
    assert (found.median, found.low, found.high) == (2, 2, 2)
    assert spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (9.996, "10.0"), (99.96, "100"), (1234, "1234")],
)
def test_numbers_have_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("regime", REGIMES)
def test_every_variant_computes_the_same_loss(regime: str) -> None:
    case = Case(64, 16, regime)
    embeddings, labels = make_data(regime, 64, 16)
    wanted = naive_loss(embeddings, labels)
    for name, variant in VARIANTS.items():
        # What torch.compile compiles is naive_loss itself; compiling it takes too long here. And
        # cpu-skip is measured with hyper-parameters of its own.
        if name in ("mm", "compile", "cpu-skip") or variant.missing(case):
            continue
        torch.testing.assert_close(variant.work(case).forward(), wanted, rtol=1e-4, atol=1e-4)


def test_too_large_case_is_skipped_with_the_memory_it_would_need() -> None:
    reason = VARIANTS["pml"].unusable(Case(16384, 128), memory_limit=4e9)
    if "pml" in VARIANTS and VARIANTS["pml"].missing(Case(2, 2)):
        assert reason == "unavailable: pytorch-metric-learning is not installed"
    else:
        assert reason == "skipped: would need about 17.4 GB"
    assert VARIANTS["tiled"].unusable(Case(16384, 128), memory_limit=4e9) is None


def test_variant_that_fails_is_recorded_with_the_reason_and_the_others_are_timed() -> None:
    def build() -> Function:
        raise RuntimeError("no compiler\nmore lines")

    broken = Variant("broken", build, missing=lambda case: None)
    method = Method(
        {"broken": broken, "mm": VARIANTS["mm"]},
        effort=Effort(min_rounds=2, max_rounds=2),
        memory_limit=1e9,
    )
    rows = {row["variant"]: row for row in time_case(method, Case(16, 4), {})}
    assert rows["broken"]["status"] == "failed: RuntimeError: no compiler"
    assert rows["mm"]["status"] == "ok"
    assert len(rows["mm"]["forward"]) == 2


def test_memory_gauge_measures_a_known_allocation() -> None:
    peak = memory.peak_above_baseline(lambda: torch.ones(50_000_000))
    assert peak.bytes == pytest.approx(200e6, rel=0.1)


def test_memory_of_the_product_in_a_fresh_process_is_one_matrix() -> None:
    peak = memory.measure("mm", Case(7072, 4))
    assert peak.bytes == pytest.approx(200e6, rel=0.1)


def test_memory_of_a_failing_child_names_the_error() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        memory.measure("nothing", Case(16, 4))


def test_results_survive_the_way_through_a_file(tmp_path: Path) -> None:
    made = results.start_results("loss", "cpu", {"m": 0.4})
    made.rows = [{"kind": "time", "forward": [0.1, 0.25]}, {"kind": "memory", "peak_bytes": 7}]
    path = tmp_path / "new folder" / "results.json"
    results.save(made, path)
    assert results.load(path) == made
    assert made.machine["cores"] >= 1
    assert made.versions["torch"] == torch.__version__
    # Without rows the file must be JSON, too: a run may end before its first case does.
    made.rows = []
    results.save(made, path)
    assert results.load(path) == made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "not a results file of schema"),
        ('{"schema": 1, "else": 2}', "is not a results file"),
    ],
)
def test_file_that_is_no_results_file_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        results.load(path)


def test_blocks_are_replaced_between_markers_and_nothing_else_changes() -> None:
    text = (
        "# Title\n\n<!-- bench:a -->\nold\n<!-- /bench:a -->\nbetween\n"
        "<!-- bench:other -->kept<!-- /bench:other -->\n<!-- bench:a --><!-- /bench:a -->end"
    )
    assert replace_blocks(text, {"a": r"new \1", "unused": "x"}, "doc") == (
        "# Title\n\n<!-- bench:a -->\nnew \\1\n<!-- /bench:a -->\nbetween\n"
        "<!-- bench:other -->kept<!-- /bench:other -->\n"
        "<!-- bench:a -->\nnew \\1\n<!-- /bench:a -->end"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no markers", r"README\.md has none of the markers <!-- bench:a -->"),
        ("<!-- bench:a --> open", r"README\.md: <!-- bench:a --> has no <!-- /bench:a -->"),
        (
            "<!-- bench:a --> x <!-- bench:a --> y <!-- /bench:a -->",
            r"README\.md: <!-- bench:a --> has no",
        ),
    ],
)
def test_missing_marker_is_a_clear_error(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace_blocks(text, {"a": "new"}, "README.md")


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of a quick run on one small size."""
    path = tmp_path_factory.mktemp("bench") / "loss.json"
    arguments = ["loss", "--quick", "--no-memory", "--sizes", "64x16", "--out", str(path)]
    assert cli.main(arguments) == 0
    return path


def test_quick_run_writes_results_and_picture(quick_run: Path) -> None:
    content = json.loads(quick_run.read_text())
    assert {"machine", "versions", "git", "created", "torch_threads"} <= set(content)
    rows = {row["variant"]: row for row in content["rows"]}
    assert set(rows) == set(VARIANTS)
    for name in ("tiled", "eager"):
        assert rows[name]["status"] == "ok"
        assert len(rows[name]["forward"]) == len(rows[name]["forward_backward"]) >= 5
    assert rows["compile"]["status"].startswith("skipped: ")
    picture = quick_run.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_report_prints_rewrites_and_draws(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "picture.png"
    names = ("loss-cpu", "loss-cpu-times", "loss-cpu-memory", "loss-cpu-environment")
    page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    arguments = ["report", str(quick_run), "--write", str(page), "--plot", str(picture)]
    assert cli.main(arguments) == 0
    assert "speed-up over" in capsys.readouterr().out
    text = page.read_text()
    assert "| 64 | 16 | random | float32 | tiled |" in text
    assert f"torch {torch.__version__}" in text
    assert picture.exists()
    # A second time changes nothing.
    assert cli.main(arguments) == 0
    assert page.read_text() == text


def test_report_on_a_page_without_markers_says_which_it_wants(
    quick_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    assert cli.main(["report", str(quick_run), "--write", str(page)]) == 1
    assert "<!-- bench:loss-cpu -->" in capsys.readouterr().err
    assert page.read_text() == "nothing"


def test_tables_show_reasons_and_memory_only_sizes(quick_run: Path) -> None:
    made = dataclasses.replace(results.load(quick_run))
    size = {"kind": "memory", "rows": 16384, "dim": 128, "dtype": "float32", "regime": "random"}
    made.rows = [
        *made.rows,
        {**size, "variant": "tiled", "status": "ok", "peak_bytes": 123_400_000},
        {**size, "variant": "eager", "status": "skipped: would need about 8.8 GB"},
    ]
    full, _, peaks = loss_tables(made)
    keys = ["16384", "128", "random", "float32"]
    assert [*keys, "tiled", "memory only", *["-"] * 6, "123"] in full.rows
    reason = "skipped: would need about 8.8 GB"
    assert [*keys, "eager", reason, *["-"] * 6, reason] in full.rows
    assert peaks.rows[0][:3] == ["16384", "128", "float32"]
    assert any("compile" in note for note in full.notes)
    assert "compile" not in read_loss(made).variants


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--sizes", "64"], "a size must be ROWSxDIM such as 1024x128, got '64'"),
        (["loss", "--sizes", "64x0"], "at least 2 rows and 2 dimensions, got '64x0'"),
        (["loss", "--sizes", "64x16,axb"], "got 'axb'"),
        (["loss", "--regimes", "easy"], "regimes must be among random, trained; got 'easy'"),
        (["loss", "--dtypes", "int8"], "dtypes must be among"),
        (["loss", "--variants", "keras"], "variants must be among"),
        (["losses"], "invalid choice: 'losses'"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["loss", "--rounds", "0"], "--rounds must be greater than 0, got 0"),
        (["report", "no-such-file.json"], "cannot read no-such-file.json"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [loss, classes, kernels, launches, gpu, tune])
def test_every_option_but_where_to_run_and_write_makes_a_run_partial(command) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    assert results.is_whole(argparse.Namespace(**defaults), command.add_arguments)
    for option in defaults:
        changed = argparse.Namespace(**{**defaults, option: "other"})
        whole = option in ("device", "out")
        assert results.is_whole(changed, command.add_arguments) == whole, option


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of its own with results of whole runs."""
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for command in (kernels, launches):  # nor are documents to be written
        monkeypatch.setattr(command, "_DOCUMENT", tmp_path / "no-such-page.md")
    for name in ("loss-cpu", "class-cpu", "kernels", "launches"):
        (tmp_path / f"{name}.json").write_text("whole")
    return tmp_path


def whole_results(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.read_bytes() == b"whole"}


MEASURED = [
    {"kind": "time", **Case(16, 4).as_dict(), "variant": "mm", "status": "failed: not measured"}
]
ALL_WHOLE = {"loss-cpu.json", "class-cpu.json", "kernels.json", "launches.json"}


@pytest.mark.parametrize(
    ("arguments", "partial"),
    [
        (["loss", "--sizes", "16x4", "--variants", "tiled", "--no-memory"], "loss-cpu-partial"),
        (["loss", "--sizes", "16x4", "--rounds", "2", "--no-memory"], "loss-cpu-partial"),
        (["class", "--quick"], "class-cpu-partial"),
        (["kernels", "--targets", "sm_90"], "kernels-partial"),
    ],
)
def test_partial_run_leaves_the_results_of_whole_ones(
    arguments: list[str], partial: str, committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    monkeypatch.setattr(classes, "_measure", lambda *part: [])
    monkeypatch.setattr(kernels, "compile_all", lambda targets: [])
    monkeypatch.setattr(report, "show", lambda results: None)
    monkeypatch.setattr(report, "tables", lambda results: [])
    assert cli.main(arguments) == 0
    assert whole_results(committed) == ALL_WHOLE
    assert json.loads((committed / f"{partial}.json").read_text())["schema"] == results.SCHEMA
    name = partial.removesuffix("-partial")
    assert cli.main([*arguments, "--out", str(committed / f"{name}.json")]) == 1
    assert whole_results(committed) == ALL_WHOLE


def test_run_without_a_peer_leaves_the_results_of_whole_ones(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(VARIANTS["pml"], missing=lambda case: "not here")
    monkeypatch.setitem(VARIANTS, "pml", absent)
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    monkeypatch.setattr(launches, "count_case", lambda name, case: {})
    monkeypatch.setattr(launches, "exceeded_budgets", lambda rows: [])
    monkeypatch.setattr(report, "show", lambda results: None)
    for command in ("loss", "launches"):
        assert cli.main([command]) == 0
    assert whole_results(committed) == ALL_WHOLE


def test_whole_run_replaces_the_results_when_it_has_ended(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(plan):
        yield MEASURED
        raise KeyboardInterrupt

    present = dataclasses.replace(VARIANTS["pml"], missing=lambda case: None)
    monkeypatch.setitem(VARIANTS, "pml", present)
    monkeypatch.setattr(report, "show", lambda results: None)
    monkeypatch.setattr(loss, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.main(["loss"])
    assert whole_results(committed) == ALL_WHOLE
    monkeypatch.setattr(loss, "measure", lambda plan: [MEASURED])
    assert cli.main(["loss"]) == 0
    assert whole_results(committed) == ALL_WHOLE - {"loss-cpu.json"}
    assert results.load(committed / "loss-cpu.json").rows == MEASURED
    assert (committed / "loss-cpu.png").exists()
    assert not (committed / "loss-cpu-partial.json").exists()


def test_results_of_an_unknown_command_are_refused() -> None:
    with pytest.raises(UserError, match="'weather'"):
        report.tables(results.start_results("weather", "cpu", {}))
