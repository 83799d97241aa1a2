"""Parsing of budgets, and the free memory."""

import pathlib

import jax
import pytest
from hypothesis import given, strategies as st

from batchkit.auto import _lane_memory
from batchkit.auto._lane_memory import free_bytes, parse_budget


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1, 1),
        (12345, 12345),
        ("1 B", 1),
        ("512 MB", 512_000_000),
        ("512MB", 512_000_000),
        ("8 GiB", 8 * 1024**3),
        ("1.5 kB", 1500),
        (".5 TiB", 1024**4 // 2),
        (" 2 gib ", 2 * 1024**3),
    ],
)
def test_budget_is_parsed(written, expected):
    assert parse_budget(written, "Auto") == expected


@given(st.integers(1, 10**15))
def test_int_budget_is_bytes(count):
    assert parse_budget(count, "Auto") == parse_budget(f"{count} B", "Auto")


@pytest.mark.parametrize(
    "written", ["", "8", "GiB", "8 GiBs", "-8 GiB", "8 G", "1e9 B"]
)
def test_unparsable_budget_is_refused_with_an_example(written):
    with pytest.raises(ValueError, match=r"Auto\(budget\).*'512 MB' or '8 GiB'"):
        parse_budget(written, "Auto(budget)")


@pytest.mark.parametrize("budget", [0, -1, "0 GiB", "0.1 B"])
def test_budget_below_one_byte_is_refused(budget):
    with pytest.raises(ValueError, match="at least one byte"):
        parse_budget(budget, "Auto(budget)")


@pytest.mark.parametrize("budget", [True, 1.5, [8], b"8 GiB"])
def test_budget_of_another_type_is_refused(budget):
    with pytest.raises(TypeError, match=f"got {type(budget).__name__}"):
        parse_budget(budget, "Auto(budget)")


def test_free_memory_is_plausible():
    assert 2**20 < free_bytes() < 2**50


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [("max", "5", 3000 * 1024), ("1000000", "400000", 600000), ("9", "10", 0)],
)
def test_limit_of_a_container_counts(limit, used, expected, tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       8000 kB\nMemAvailable:   3000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    monkeypatch.setattr(_lane_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(_lane_memory, "_CGROUP", tmp_path)
    assert free_bytes() == expected


def test_unknown_free_memory_is_an_error(monkeypatch):
    nowhere = pathlib.Path("nowhere")
    monkeypatch.setattr(_lane_memory, "_MEMINFO", nowhere)
    monkeypatch.setattr(_lane_memory, "_CGROUP", nowhere)
    with pytest.raises(RuntimeError, match="Give a budget"):
        free_bytes()


def test_multiprocess_program_needs_a_budget(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(RuntimeError, match="2 processes would measure different"):
        free_bytes()
