"""The figure of a report's first screen: what becomes of memory and of reasoning as training loss falls, on two paths.

One path gives the models more experts at the fewest active parameters, the other more active parameters at the most
experts. If training loss decided what a model can do, both paths would lie on one line.
"""

import pandas as pd

from pipeline.analysis.answer import main_numbers
from pipeline.analysis.metrics import MEMORISATION, Key, family, kind, words
from pipeline.analysis.panels import LOSS, PALETTE, Chart, Panel, bars_note, items, line_of, make_chart
from pipeline.analysis.tables import over_seeds, with_loss
from pipeline.dag.stages import BASE


def finding(results: pd.DataFrame) -> Chart | None:
    """The two panels; None where a path has fewer than two models with a training loss."""
    merged = with_loss(over_seeds(results[results["variant"] == BASE]))
    paths = _paths(merged)
    if not paths:
        return None
    row = [_panel(merged, key, paths) for key, *_ in main_numbers(results[results["variant"] == BASE])]
    if not all(row):
        return None
    caption = (
        "What the models remember, and what they do with problems that they have not seen, both against their training "
        f"loss, which falls from left to right. {bars_note(merged)}"
    )
    return make_chart("finding", caption, [row])


def _paths(merged: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The models on each path, by their series and experts."""
    models = merged.dropna(subset=["train_loss"]).drop_duplicates(["series", "experts"])
    sizes = models.groupby("series")["experts"].nunique()
    if not len(sizes) or sizes.max() < 2:
        return {}
    longest = models[models["series"].isin(sizes[sizes == sizes.max()].index)].sort_values("active_params")
    first = longest[longest["series"] == longest["series"].iloc[0]].sort_values("experts")
    last = first.iloc[-1]
    same = (models["hidden"] == last["hidden"]) & (models["experts"] == last["experts"])
    wider = models[same & (models["topk"] >= last["topk"])].sort_values("topk").drop_duplicates("topk")
    k = int(last["topk"])
    paths = {f"more experts: E {first['experts'].iloc[0]} to {last['experts']} at k {k}": first}
    if len(wider) > 1:
        paths[f"more active parameters: k {k} to {wider['topk'].iloc[-1]} at E {last['experts']}"] = wider
    return paths


def _panel(merged: pd.DataFrame, key: Key, paths: dict[str, pd.DataFrame]) -> Panel | None:
    chosen, lines = key.rows(merged), []
    for (label, path), colour, marker in zip(paths.items(), PALETTE, "os", strict=False):
        rows = path[["series", "experts"]].merge(chosen, on=["series", "experts"])
        if len(rows) < 2:
            return None
        lines.append(line_of(label, rows, "train_loss", colour, marker))
    share = family(key.stage, key.metric) == "accuracy"
    side = "Memorisation" if kind(key.task) == MEMORISATION else "Reasoning"
    title = f"{side}: {key.entry}{items(chosen)}"
    return Panel(title, LOSS, words(key.metric), lines, None, share, reverse=True)
