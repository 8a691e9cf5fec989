"""How a report of pip-audit is judged."""

import json
import subprocess
from typing import Any

import pytest

from tools import audit

GOOD: dict[str, Any] = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {
    "name": "dvc",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}],
}
MISSED = {
    "name": "keras",
    "skip_reason": "Dependency not found on PyPI and could not be audited: keras (3.15.1)",
}


def audited(monkeypatch: pytest.MonkeyPatch, *outputs: str) -> int:
    """The exit code where pip-audit prints these, one for each database that is asked."""
    left = list(outputs)

    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, stdout=left.pop(0), stderr="Traceback\nError: no such host"
        )

    monkeypatch.setattr(subprocess, "run", answer)
    with pytest.raises(SystemExit) as ended:
        audit.main()
    assert not left
    return int(ended.value.code or 0)


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("outputs", "code", "line"),
    [
        pytest.param(
            [report(GOOD)], 0, "pypi: no vulnerability is known of 1 packages", id="clean"
        ),
        pytest.param(
            [report(GOOD, BAD)], 1, "pypi: dvc 1.0: PYSEC-1, mended in 1.1, 2.0", id="known"
        ),
        pytest.param(
            [report(BAD, MISSED)],
            1,
            "pypi: dvc 1.0: PYSEC-1, mended in 1.1, 2.0\naudit: pypi: no answer for 1 of 2 packages",
            id="known-and-missed",
        ),
        pytest.param(
            [report(MISSED), report(GOOD)],
            0,
            "osv: no vulnerability is known of 1 packages",
            id="second",
        ),
        pytest.param(
            [report(GOOD, MISSED), ""],
            2,
            "expected an answer for every package, found none; pypi: no answer for 1 of 2 packages; "
            "osv: Error: no such host",
            id="no-answer",
        ),
        pytest.param(
            [report(), report()],
            2,
            "expected an answer for every package, found none; pypi: no answer for 0 of 0 packages; "
            "osv: no answer for 0 of 0 packages",
            id="nothing-asked",
        ),
    ],
)
def test_what_was_not_looked_up_is_never_taken_for_safe(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outputs: list[str],
    code: int,
    line: str,
) -> None:
    assert audited(monkeypatch, *outputs) == code
    assert capsys.readouterr().out == f"audit: {line}\n"
