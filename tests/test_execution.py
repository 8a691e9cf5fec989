"""Scheduling of experiments on workers, with a fake task; with DVC: slow/."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client, Future

from stages.lib.stage import StageError
from tools.lib import workers
from tools.lib.execution import Outcome, run_on_workers


def test_free_worker_gets_the_next_experiment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first experiment ends last."""
    (tmp_path / "gate").touch()

    def wait(name: str) -> None:
        deadline = time.monotonic() + 30
        while name == "0" and (tmp_path / "gate").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    taken: list[str] = []

    def experiments() -> Iterator[tuple[str, dict[str, object]]]:
        for number in range(5):
            taken.append(str(number))
            yield str(number), {}

    def finish(future: Future, name: str) -> tuple[str, str]:
        future.result()
        if name == "2":
            raise StageError("train failed")
        return f"commit {name}", "1"

    with Client(
        processes=False,
        threads_per_worker=2,
        n_workers=1,
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
    ) as client:

        @contextmanager
        def open_tasks(*_: str) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(
                threads=client.nthreads,
                submit=lambda name, _: client.submit(wait, name),
                finish=finish,
            )

        monkeypatch.setattr(workers, "open_tasks", open_tasks)
        outcomes = run_on_workers(experiments(), "commit", "url", "1", ahead=False)
        ended = []
        for outcome in outcomes:
            ended.append(outcome.name)
            assert len(taken) == min(5, len(ended) + 1)  # the next is taken afterwards
            if outcome.name == "4":
                (tmp_path / "gate").unlink()
            if outcome.name == "2":
                with pytest.raises(StageError, match="train failed"):
                    outcome.result()
            else:
                assert outcome == Outcome(outcome.name, f"commit {outcome.name}", "1")
        assert ended == ["1", "2", "3", "4", "0"]
        taken.clear()
        next(run_on_workers(experiments(), "commit", "url", "1", ahead=True))
        assert len(taken) == 5
