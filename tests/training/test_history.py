from __future__ import annotations

from pathlib import Path

import pytest

from training.errors import DataError
from training.history import best_epoch, column, mean_history, read_history, read_metrics

LOG = """epoch,step,train_accuracy,train_loss,val_accuracy,val_loss
0,99,,,0.35,1.34
0,99,0.71,0.82,,
1,199,,,0.92,0.38
1,199,0.86,0.52,,
2,299,,,0.92,nan
2,299,0.89,0.46,,
"""


def write(path: Path, text: str = LOG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_training_and_validation_values_of_an_epoch_are_merged(tmp_path: Path) -> None:
    history = read_metrics(write(tmp_path / "metrics.csv"))
    assert history[1] == {"train_accuracy": 0.71, "train_loss": 0.82, "val_accuracy": 0.35, "val_loss": 1.34}
    assert column(history, "train_loss") == [(1, 0.82), (2, 0.52), (3, 0.46)]


def test_a_loss_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    assert column(read_metrics(write(tmp_path / "metrics.csv")), "val_loss") == [(1, 1.34), (2, 0.38)]


def test_the_best_epoch_is_the_lowest_loss_or_the_first_of_the_highest_accuracies(tmp_path: Path) -> None:
    history = read_metrics(write(tmp_path / "metrics.csv"))
    assert best_epoch(history, "val_loss") == 2
    assert best_epoch(history, "val_accuracy") == 2
    assert best_epoch(history, "val_f1") is None


def test_a_resumed_run_continues_the_log_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "log/version_2/metrics.csv")
    write(tmp_path / "log/version_10/metrics.csv", "epoch,step,val_loss\n2,299,0.2\n3,399,0.1\n")
    history = read_history(tmp_path)
    assert column(history, "val_loss") == [(1, 1.34), (2, 0.38), (3, 0.2), (4, 0.1)]
    assert column(history, "train_loss") == [(1, 0.82), (2, 0.52)]


def test_a_run_started_again_discards_the_first_log(tmp_path: Path) -> None:
    write(tmp_path / "log/version_0/metrics.csv")
    write(tmp_path / "log/version_1/metrics.csv", "epoch,step,val_loss\n0,99,0.9\n")
    assert read_history(tmp_path) == {1: {"val_loss": 0.9}}


def test_a_log_without_an_epoch_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "log/version_0/metrics.csv")
    write(tmp_path / "log/version_1/metrics.csv", "epoch,step,val_loss\n")
    assert len(read_history(tmp_path)) == 3


def test_a_run_without_a_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no metrics\.csv"):
        read_history(tmp_path)


@pytest.mark.parametrize(
    "text", ["step,loss\n1,2\n", "epoch,step,loss\nx,1,2\n", "epoch,step,loss\n0,1,low\n"]
)
def test_a_log_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="is not a log"):
        read_metrics(write(tmp_path / "metrics.csv", text))


def test_the_mean_of_runs_has_what_all_of_them_logged() -> None:
    one = {1: {"train_loss": 1.0}, 2: {"train_loss": 0.5, "val_loss": 0.4}}
    other = {
        1: {"train_loss": 2.0, "lr": 0.1},
        2: {"train_loss": 0.7, "val_loss": 0.2},
        3: {"train_loss": 0.1},
    }
    mean = mean_history([one, other])
    assert mean == {1: {"train_loss": 1.5}, 2: {"train_loss": 0.6, "val_loss": pytest.approx(0.3)}}
