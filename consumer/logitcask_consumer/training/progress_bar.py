"""What a person sees of a run while it goes: how far it is, how it does, how long it takes; on stderr."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from logitcask_consumer.training.best_checkpoint import Evaluations
from logitcask_consumer.training.callbacks import of_each_cask


class ProgressBar(TrainerCallback):
    """A bar with the last step's metrics; where stderr is no terminal, a plain line of the same every few seconds."""

    def __init__(
        self, *, metric: str | None = None, line_seconds: float = 15.0, console: Console | None = None
    ) -> None:
        """Say what is shown, and where.

        Args:
            metric: the figure of evaluations on held-out documents, `kl` or `kl_bound`; None where there are none.
            line_seconds: between two plain lines.
            console: where to; None for stderr.
        """
        self._metric = metric
        self._console = console or Console(stderr=True)
        self._line_seconds = line_seconds
        self._last_line = 0.0
        self._began, self._first_step = 0.0, 0
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step that training starts from."""
        self._began, self._first_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar.start()
        self._task = self._bar.add_task("train", total=state.max_steps, completed=state.global_step, metrics="")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the metrics of the last step."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        shown = "  ".join([*_metrics(logs), *self._held_out(state)])
        if self._bar is not None:
            self._bar.update(self._task, metrics=shown)
        elif time.monotonic() - self._last_line >= self._line_seconds or state.global_step == state.max_steps:
            self._last_line = time.monotonic()
            left = self._left(state)
            self._console.print(
                f"step {state.global_step:,} of {state.max_steps:,}  {shown}{left}", highlight=False, soft_wrap=True
            )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Say what an evaluation on held-out documents has come to, each in a line of its own."""
        if self._metric is None or metrics is None or not state.is_world_process_zero:
            return
        when = f"after step {state.global_step:,}" if state.global_step else "before training"
        console = self._console if self._bar is None else self._bar.console
        console.print(f"held out, {when}: {self._figures(state, metrics)}", highlight=False, soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _figures(self, state: Any, metrics: Mapping[str, Any]) -> str:
        assert self._metric is not None, "asked for where there are evaluations"
        value, best = metrics[f"eval_{self._metric}"], Evaluations.of(state.log_history, self._metric).best
        standing = ""
        if best is not None:
            standing = (
                " (the best so far)" if best[0] == state.global_step else f" (best {best[1]:.4g}, step {best[0]:,})"
            )
        parts = [
            f"{_name(self._metric)} {value:.4g} nats{standing}",
            f"loss of the real tokens {metrics['eval_nll']:.4g}",
        ]
        if "eval_agreement" in metrics:
            parts.append(f"likeliest token as the teacher's {metrics['eval_agreement']:.1%}")
        return ", ".join(parts)

    def _held_out(self, state: Any) -> list[str]:
        """The last evaluation."""
        if self._metric is None:
            return []
        values = Evaluations.of(state.log_history, self._metric)
        last = values.values[-1] if values.values else values.before
        return [] if last is None else [f"held-out {_name(self._metric)} {_short(last)}"]

    def _left(self, state: Any) -> str:
        """How long the steps that are left will take, at the pace of this call's, evaluations among them."""
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        if done < 1 or left < 1:
            return ""
        return f"  {duration_text((time.monotonic() - self._began) / done * left)} left"


def duration_text(seconds: float) -> str:
    """A duration in the two units that tell most: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def best_text(held_out: Mapping[str, Any] | None, *, saved: int | None, steps: int) -> str:
    """The best evaluation of a run that is at its end, for the line that closes it; nothing where none was made.

    Args:
        held_out: `Evaluations.as_dict`; None where the run has no held-out documents.
        saved: of which step the student is; None where the run does not say, which means its last.
        steps: that were made.
    """
    best = held_out["best"] if held_out else None
    if held_out is None or best is None:
        return ""
    saved = steps if saved is None else saved
    early = ", after which training ended early" if held_out["ended_early"] and saved == steps else ""
    is_best = saved == best["step"] and not early
    student = ", which is saved" if is_best else f"; the student is that of step {saved:,}{early}"
    return f"; held-out {_name(held_out['metric'])} {best['value']:.3f} at step {best['step']:,}, the best{student}"


def _metrics(logs: Mapping[str, Any]) -> list[str]:
    """The metrics of a step, by the names that people know."""
    names = ["loss", *of_each_cask(logs), "kl", "ce", "lr"]
    shown = [f"{name} {_short(logs[name])}" for name in names if name in logs]
    return [*shown, *([f"{_short(logs['tokens_per_second'])} tokens/s"] if "tokens_per_second" in logs else [])]


def _name(metric: str) -> str:
    """The KL as people read it."""
    return "kl" if metric == "kl" else "kl, at least"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
