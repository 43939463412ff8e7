"""The table of launch settings: what a device takes, and files that are not as they should be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")

from circle_kernels.backends.triton import settings as settings_module
from circle_kernels.backends.triton import settings_table
from circle_kernels.backends.triton.settings import (
    Settings,
    amd_architecture,
    dot_precision,
    find_settings,
    listed_settings,
    nvidia_architecture,
    settings_family,
)
from circle_kernels.backends.triton.settings_table import KERNELS, SETTINGS_VARIABLE, load_table
from circle_kernels.backends.triton.sides import ROW_PADDING

SHIPPED = ("sm_86", "gfx942", "interpreter")
ENTRY: dict[str, Any] = {
    "kernel": "triangle",
    "family": "sm_89",
    "bytes": 2,
    "block_rows": 32,
    "block_columns": 32,
    "block_depth": 16,
    "num_warps": 2,
    "num_stages": 4,
}
TUNED = Settings(32, 32, 16, 2, 4)


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test reads its own files."""
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    load_table.cache_clear()
    yield
    load_table.cache_clear()


def write(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps({"entries": entries, "measured": {"anything": 1}}))
    return path


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Have entries in a file of the user's."""

    def use(*entries: object) -> None:
        monkeypatch.setenv(SETTINGS_VARIABLE, str(write(tmp_path / "tuned.json", *entries)))
        load_table.cache_clear()

    return use


def test_every_family_has_settings_for_every_kernel_from_the_smallest_depth_on() -> None:
    table = load_table()
    for key in itertools.product(KERNELS, SHIPPED, (2, 4)):
        assert table[key][-1][0] == 1
    assert ROW_PADDING % max(settings_table._BLOCKS) == 0


# Among them one that nobody has seen.
@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (10, 0), (10, 3), (12, 0), (19, 7)])
def test_nvidia_devices_take_the_settings_of_the_one_with_least_memory(
    capability: tuple[int, int],
) -> None:
    architecture = nvidia_architecture(capability)
    assert settings_family(architecture) == "sm_86"
    for kernel, dtype in itertools.product(KERNELS, (torch.float16, torch.float32)):
        found = find_settings(kernel, architecture, dtype, 512)
        assert found == find_settings(kernel, "sm_86", dtype, 512)


@pytest.mark.parametrize("name", ["gfx942:sramecc+:xnack-", "gfx90a", "gfx1201", "gfx9-generic"])
def test_amd_devices_take_the_settings_of_gfx942(name: str) -> None:
    architecture = amd_architecture(name)
    assert settings_family(architecture) == "gfx942"
    for kernel in KERNELS:
        found = find_settings(kernel, architecture, torch.float32, 512)
        assert found == find_settings(kernel, "gfx942", torch.float32, 512)
    assert dot_precision(architecture, torch.float32, "highest") == "ieee"


def test_what_is_no_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wanted an architecture such as sm_89 .* 'hopper'"):
        find_settings("small_rectangle", "hopper", torch.float32, 64)


def test_file_of_the_user_goes_first_for_its_architecture_and_no_other(use: Any) -> None:
    before = find_settings("triangle", "sm_86", torch.bfloat16, 512)
    use(ENTRY)
    assert find_settings("triangle", "sm_89", torch.bfloat16, 512) == TUNED
    assert find_settings("triangle", "sm_86", torch.bfloat16, 512) == before != TUNED
    assert find_settings("triangle", "sm_89", torch.float32, 512).block_rows == 64
    assert find_settings("rectangle", "sm_89", torch.bfloat16, 512).block_rows == 128


def test_entry_of_a_family_serves_the_architectures_that_fall_back_to_it(use: Any) -> None:
    use({**ENTRY, "family": "sm_86"})
    for architecture in ("sm_86", "sm_89", "sm_120"):
        assert find_settings("triangle", architecture, torch.bfloat16, 512) == TUNED


def test_entry_holds_from_its_depth_on(use: Any) -> None:
    shipped = find_settings("triangle", "sm_90", torch.bfloat16, 255)
    deep = {**ENTRY, "family": "sm_90", "depth": 256}
    use({**deep, "depth": 1024, "num_stages": 5}, deep)
    expected = {255: shipped, 256: TUNED, 1023: TUNED, 1024: replace(TUNED, num_stages=5)}
    for depth, settings in expected.items():
        assert find_settings("triangle", "sm_90", torch.bfloat16, depth) == settings


def test_architecture_with_entries_for_large_depths_only_takes_its_family_below(use: Any) -> None:
    use({**ENTRY, "depth": 512})
    assert find_settings("triangle", "sm_89", torch.bfloat16, 512) == TUNED
    assert find_settings("triangle", "sm_89", torch.bfloat16, 64) == find_settings(
        "triangle", "sm_86", torch.bfloat16, 64
    )


def test_kernels_of_float32_chunk_the_depth_alike() -> None:
    """As they sum it, so that each sees the same bits of a similarity."""
    for family, depth in itertools.product((*SHIPPED, "sm_90"), (16, 40, 512, 2048)):
        found = {find_settings(kernel, family, torch.float32, depth) for kernel in KERNELS}
        assert len({settings.block_depth for settings in found}) == 1


def test_no_chunk_is_larger_than_the_depth_needs() -> None:
    for depth, chunk in ((1, 16), (16, 16), (17, 32), (48, 64), (512, 64)):
        assert find_settings("rectangle", "sm_90", torch.float16, depth).block_depth == chunk


def test_tiles_stay_whole_where_slices_would_leave_the_registers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sliced = listed_settings("weights", "sm_90", 2, 512)
    assert sliced.column_slices > 1
    monkeypatch.setattr(settings_module, "_SLICES_IN_REGISTERS", False)
    assert find_settings("weights", "sm_90", torch.bfloat16, 512) == replace(
        sliced, column_slices=1
    )


def test_files_are_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SETTINGS_VARIABLE, str(write(tmp_path / "tuned.json", ENTRY)))
    find_settings("triangle", "sm_89", torch.bfloat16, 512)
    monkeypatch.setattr(settings_table, "read_entries", None)
    assert find_settings("triangle", "sm_89", torch.bfloat16, 512) == TUNED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "square"}, "kernel must be one of rectangle, .*, got 'square'"),
        ({"kernel": ["triangle"]}, "kernel must be one of"),
        ({"family": "hopper"}, "family must be an architecture such as sm_89 .*, got 'hopper'"),
        ({"bytes": 8}, "bytes must be one of 2, 4, got 8"),
        ({"block_depth": 48}, "block_depth must be one of 16, 32, 64, 128, 256, got 48"),
        ({"num_warps": 3}, "num_warps must be one of 1, 2, 4, 8, 16, got 3"),
        ({"num_warps": True}, "num_warps must be one of .* got True"),
        ({"num_stages": 2.0}, r"num_stages must be one of .* got 2\.0"),
        ({"max_registers": 256}, r"max_registers must be a whole number of 1 to 255, got 256"),
        ({"max_registers": 255, "family": "gfx942"}, "is an option of NVIDIA's devices"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"depth": "512"}, "depth must be a whole number of at least 1, got '512'"),
        (
            {"warps": 4},
            "warps unknown: wanted kernel, .* if need be depth, max_registers, column_slices, note",
        ),
        ({"bytes": 4}, "block_depth of 4 bytes must be 32, .* same bits of a similarity, got 16"),
        (
            {"block_columns": 64},
            "block_rows of triangle must be at least block_columns",
        ),
        ({"kernel": "weights", "block_columns": 64}, "must be at least block_columns, got 32 and"),
        ({"kernel": "weights", "column_slices": 3}, "column_slices must be one of 1, 2, 4, got 3"),
        ({"column_slices": 2}, "column_slices of triangle must be 1, got 2"),
    ],
)
def test_wrong_entry_is_named_with_what_is_wanted(
    changes: dict[str, Any], message: str, use: Any
) -> None:
    use({**ENTRY, "family": "sm_80"}, {**ENTRY, **changes})
    with pytest.raises(ValueError, match=rf"tuned\.json, entry 2 \(.*\): .*{message}"):
        load_table()


def test_entries_without_a_field_of_the_wrong_kind_or_twice_are_named(use: Any) -> None:
    use({name: value for name, value in ENTRY.items() if name != "num_stages"})
    with pytest.raises(ValueError, match=r"entry 1 .*: num_stages missing: wanted kernel, family"):
        load_table()
    use("triangle")
    with pytest.raises(ValueError, match=r"entry 1 \(\"triangle\"\): wanted an object with kernel"):
        load_table()
    use(ENTRY, {**ENTRY, "depth": 64}, {**ENTRY, "num_warps": 8, "depth": 1})
    with pytest.raises(ValueError, match=r"entry 3 .* one for each kernel, .* as entry 1 has"):
        load_table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"none\.json cannot be read: No such file"),
        ("{", r"none\.json is not JSON: "),
        ("[" * 100_000, r"none\.json is not JSON: "),
        ("[]", r"none\.json: wanted an object with a list of 'entries'"),
        ('{"entries": {}}', r"none\.json: wanted an object with a list of 'entries'"),
    ],
)
def test_file_that_has_no_entries_is_named(
    content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    with pytest.raises(ValueError, match=message):
        find_settings("triangle", "sm_90", torch.float32, 64)
