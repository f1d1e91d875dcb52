"""How training and searching went, as PNG. matplotlib is imported on first use: it takes a second."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

GREY, BLUE = "#9aa0a6", "#1a73e8"
LINES = ("-", "--", "-.", ":")


def plot_curve(curve: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw what a model remembers of its training: loss and ndcg@10 over epochs, or ndcg@10 of each configuration."""
    epochs = [point for point in curve if "epoch" in point]
    tries = [point for point in curve if "epoch" not in point]
    with _figure(path, title, panels=2 if epochs else 1, height=3.2 if epochs else 1.6 + 0.25 * len(tries)) as panels:
        if epochs:
            for axes, name in zip(panels, ("loss", "ndcg@10"), strict=True):
                of = [(point["epoch"], point[name]) for point in epochs if name in point]
                axes.plot(*zip(*of, strict=True), color=BLUE, marker=".", lw=1) if of else axes.set_axis_off()
                axes.set(xlabel="epoch", title=name)
                axes.xaxis.get_major_locator().set_params(integer=True)
                if name == "ndcg@10" and of:
                    epoch, value = max(of, key=lambda pair: pair[1])
                    axes.axvline(epoch, color=GREY, lw=1, ls="--")
                    axes.set(title=f"ndcg@10 on validation, best {value:.4f} in epoch {epoch}")
        else:
            names = [", ".join(f"{k} {v}" for k, v in point.items() if k != "ndcg@10") for point in tries]
            panels[0].plot([point["ndcg@10"] for point in tries], range(len(tries)), "o", color=BLUE)
            panels[0].set_yticks(range(len(tries)), names)
            panels[0].invert_yaxis()
            panels[0].grid(axis="y", color="#e8eaed")
            panels[0].set(title="ndcg@10 on validation")


def plot_search(trials: Iterable[Mapping[str, Any]], given: float, title: str, path: Path) -> None:
    """Draw ndcg@10 on validation of a search's trials over time, the best so far, and what was given.

    A trial has ``ended`` (seconds since the search began) and ``ndcg@10``, None where it was given up.
    """
    done = [(trial["ended"] / 60, trial["ndcg@10"]) for trial in trials if trial["ndcg@10"] is not None]
    with _figure(path, title, panels=1, height=3.2) as (axes,):
        axes.axhline(given, color=GREY, ls="--", lw=1, label=f"the shop's recipe, {given:.4f}")
        if done:
            best = [max(value for _, value in done[: n + 1]) for n in range(len(done))]
            axes.plot(*zip(*done, strict=True), ".", color=GREY, ms=8, label="trials")
            axes.step([when for when, _ in done], best, where="post", color=BLUE, label=f"best, {best[-1]:.4f}")
        axes.set(xlabel="minutes", ylabel="ndcg@10 on validation")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def plot_practice(curve: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw an agent's training over episodes: their mean reward and its sum so far, each against epsilon."""
    episodes, epsilon = [point["episodes"] for point in curve], [point["epsilon"] for point in curve]
    names = {"reward": "mean reward of an episode", "cumulative": "cumulative reward"}
    with _figure(path, title, panels=2, height=3.2) as panels:
        for axes, (name, label) in zip(panels, names.items(), strict=True):
            axes.plot(episodes, [point[name] for point in curve], color=BLUE, lw=1)
            axes.set_xlabel("episodes")
            axes.set_title(label, color=BLUE)
            chance = axes.twinx()
            chance.plot(episodes, epsilon, color=GREY, lw=1, ls="--")
            chance.spines[["top", "left"]].set_visible(False)
            chance.set(ylim=(0, 1.02))
            chance.set_ylabel("epsilon", color=GREY)


def plot_q_values(q_values: Any, title: str, path: Path) -> None:
    """Draw histograms of (n, C) Q, -inf where not allowed: of all candidates, and of the best of each state."""
    import numpy as np

    allowed = q_values[np.isfinite(q_values)]
    best = q_values.max(1)[np.isfinite(q_values).any(1)]
    low, high = np.quantile(allowed, (0.001, 0.999))
    edges = np.linspace(low, max(high, best.max()), 61)
    with _figure(path, title, panels=1, height=3.2) as (axes,):
        for values, color, label in ((allowed, GREY, "all candidates"), (best, BLUE, "the best of each state")):
            share = np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values)
            axes.stairs(share, edges, color=color, fill=True, alpha=0.6, label=f"{label}, mean {values.mean():.3f}")
        axes.set(xlabel="Q, discounted reward to come", ylabel="share")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def plot_dates(rows: Iterable[Mapping[str, Any]], baselines: Sequence[str], title: str, path: Path) -> None:
    """Draw ndcg@10 of every recipe over the dates of a backtest with its interval, a panel a view; baselines are grey.

    A row has ``date`` (ISO 8601, or ``mean``, which is not drawn), ``view``, ``recipe``, ``ndcg@10`` and ``interval``.
    """
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    of_dates = [row for row in rows if row["date"] != "mean"]
    views = list(dict.fromkeys(row["view"] for row in of_dates))
    recipes = list(dict.fromkeys(row["recipe"] for row in of_dates))
    with _figure(path, title, panels=len(views), height=3.6) as panels:
        for axes, view in zip(panels, views, strict=True):
            for n, recipe in enumerate(sorted(recipes, key=lambda recipe: recipe not in baselines)):
                line = [row for row in of_dates if (row["view"], row["recipe"]) == (view, recipe)]
                days = [datetime.fromisoformat(row["date"]) for row in line]
                color, style = (GREY, LINES[n % 4]) if recipe in baselines else (f"C{n % 10}", "-")
                label = recipe if len(recipe) <= 32 else f"{recipe[:31]}…"
                axes.plot(days, [row["ndcg@10"] for row in line], style, color=color, marker=".", lw=1.2, label=label)
                if line and recipe not in baselines:
                    low, high = zip(*(row["interval"] for row in line), strict=True)
                    axes.fill_between(days, low, high, color=color, alpha=0.12, lw=0)
            axes.set(title=view, ylim=(0, None))
            axes.xaxis.set_major_locator(locator := AutoDateLocator())
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        panels[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)


@contextmanager
def _figure(path: Path, title: str, panels: int, height: float) -> Iterator[list[Any]]:
    """Give the axes of panels side by side to draw on; saved at the end, with nothing of this machine in the bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, height), layout="constrained")
        figure.suptitle(title, fontsize=10)
        drawn = list(figure.subplots(1, panels, squeeze=False)[0])
        for axes in drawn:
            axes.spines[["top", "right"]].set_visible(False)
        yield drawn
        figure.savefig(path, dpi=130, metadata={"Software": None})
