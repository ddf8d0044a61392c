from __future__ import annotations

import io

from rich.console import Console

from trainer.training.bar import showing


def test_a_terminal_gets_a_bar_with_the_newest_metrics() -> None:
    screen = io.StringIO()
    with showing(Console(file=screen, force_terminal=True, width=120, color_system=None)) as report:
        report("dataset", 0.1, "reading")
        report("fit", 0.5, "epoch 2 of 4", {"val_loss": 0.25, "epoch": 2.0})
    shown = screen.getvalue()
    assert "dataset: done" in shown
    assert "epoch 2 of 4" in shown
    assert "val_loss 0.25" in shown
    assert " 50%" in shown


def test_what_is_no_terminal_gets_lines() -> None:
    screen = io.StringIO()
    with showing(Console(file=screen, width=20)) as report:
        report("fit", 0.5, "epoch 2 of 4: validation loss 0.25 [of all]", {"val_loss": 0.25})
    assert screen.getvalue() == " 50% fit       epoch 2 of 4: validation loss 0.25 [of all]\n"
