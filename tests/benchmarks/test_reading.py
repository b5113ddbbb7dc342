"""What reading in a child costs, as its benchmark says."""

from __future__ import annotations

import pytest
from listing import last_number

from benchmarks import isolation


def test_a_child_costs_less_than_fifty_milliseconds_a_scan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "SIZES", (5_000, isolation.TYPICAL))
    cost = isolation.main(["--times", "7"])
    assert last_number(capsys.readouterr().out, r"isolation: (-?[\d.]+) ms a scan of 20,000 points") == (
        pytest.approx(cost, abs=0.06)
    )
    assert cost < 50
