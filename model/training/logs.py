"""The log of a training run: lines of JSON, TensorBoard, and one picture.

`python -m model.training.logs checkpoints/chairs` draws the picture of a run that still goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FILE, PICTURE = "log.jsonl", "log.png"


@dataclass(frozen=True)
class Logged:
    """One line of the training log."""

    step: int
    loss: float  # mean data term of the steps since the line before
    code_norm: float  # mean ‖z‖
    parameter_norm: float  # of all of the decoder's parameters together
    decoder_rate: float
    code_rate: float
    seconds: float  # of this process since it began or resumed
    samples_per_second: float  # since the line before


class Log:
    """Writes the lines of a run into a folder `training/`.

    Lines after `step` are dropped first: a resumed run does these steps again.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False) -> None:
        self.folder = folder
        lines = [line for line in read_log(folder) if line.step <= step]
        part = folder / f"{FILE}.part"
        part.write_text("".join(f"{json.dumps(asdict(line))}\n" for line in lines))
        part.replace(folder / FILE)
        self.file = (folder / FILE).open("a")
        self.writer = _summary_writer(folder, step) if tensorboard else None

    def write(self, line: Logged) -> None:
        """Add a line."""
        self.file.write(json.dumps(asdict(line)) + "\n")
        self.file.flush()
        if self.writer:
            for name, value in asdict(line).items():
                self.writer.add_scalar(name, value, line.step)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if self.writer:
            self.writer.close()


def _summary_writer(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs TensorBoard: pip install 'deepsdf-service[train]'") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def read_log(folder: Path) -> list[Logged]:
    """The lines in a folder `training/`; none if there is no log. A line cut off by a kill is left out."""
    file = folder / FILE
    lines = file.read_text().splitlines() if file.exists() else []
    known = {field.name for field in fields(Logged)}
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return [Logged(**row) for row in rows if row.keys() == known]


def draw_log(folder: Path) -> Path:
    """Loss, learning rates, time, speed, and norms of codes and weights over the steps, as `log.png`."""
    from matplotlib.figure import Figure

    lines = read_log(folder)
    steps = [line.step for line in lines]
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = [("loss",), ("decoder_rate", "code_rate"), ("seconds",)]
    panels += [("samples_per_second",), ("code_norm",), ("parameter_norm",)]
    for axes, names in zip(figure.subplots(2, 3).flat, panels, strict=True):
        for name in names:
            axes.plot(steps, [getattr(line, name) for line in lines], label=name.replace("_", " "))
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    if lines:
        figure.axes[0].set_yscale("log")
    figure.savefig(folder / PICTURE)
    return folder / PICTURE


def main() -> int:
    """Draw the log of one checkpoint folder."""
    parser = argparse.ArgumentParser(prog="python -m model.training.logs", description=__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint folder that is or was trained")
    options = parser.parse_args()
    training = options.folder / "training"
    if not read_log(training):
        parser.exit(1, f"{training / FILE} has no lines: nothing has been trained yet\n")
    print(draw_log(training))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
