"""The command line of `compare`; on real runs see slow/test_compare.py."""

import pytest

from stages.lib.stage import StageError
from tools.compare import parse_arguments


def test_difference_of_interest_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["compare", "HEAD"])
    assert parse_arguments().difference == 0.005


@pytest.mark.parametrize("value", ["0", "-0.01", "1", "nan"])
def test_difference_of_interest_is_between_0_and_1(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr("sys.argv", ["compare", f"--difference={value}"])
    with pytest.raises(
        StageError, match=r"^--difference: expected a number between 0 and 1, found"
    ):
        parse_arguments()
