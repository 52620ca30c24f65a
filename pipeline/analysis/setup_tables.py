"""What the models read and what they are: the paper's Tables 1 and 2 (corpora), and the grid with what follows from it.

Both come from the configuration and the records of tokenisation; nothing of them is measured on a model.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from pipeline.analysis.tables import markdown
from pipeline.config.scales import Data
from pipeline.dag.point import Point, short
from pipeline.data.registry import Source


def corpora(
    data: Data, sources: Mapping[str, Source], points: Iterable[Point], counted: Mapping[str, int]
) -> pd.DataFrame:
    """A line for each source of the blend, as text: what it is, its tokens, its share, what a model reads of it.

    Columns: source, from, licence, tokens (for training: by the registry, less what is held out, or as its
    record counts), share (of the blend, in per cent); for each number of training tokens of the points, the tokens that
    are read of the source, and epochs (those over its own; empty where the latter are not known). The last line sums.

    Args:
        counted: source -> training tokens, of those that the registry does not count.
    """
    budgets = sorted({point.tokens for point in points})
    whole, lines = sum(data.sources.values()), []
    totals = dict.fromkeys(["tokens", *(f"read of {short(budget)}" for budget in budgets)], 0.0)
    known = True
    for name, weight in data.sources.items():
        source, share = sources[name], weight / whole
        registered = getattr(source, "tokens", None)
        tokens = round(registered * (1 - data.validation)) if registered else counted.get(name)
        known = known and bool(tokens)
        totals["tokens"] += tokens or 0
        line = {"source": name, "from": _origin(source), "licence": source.licence}
        line |= {"tokens": f"{tokens:,}" if tokens else "", "share, %": f"{100 * share:.3g}"}
        for budget in budgets:
            totals[f"read of {short(budget)}"] += share * budget
            line[f"read of {short(budget)}"] = f"{round(share * budget):,}"
            line[f"epochs of {short(budget)}"] = f"{share * budget / tokens:.3g}" if tokens else ""
        lines.append(line)
    last = {"source": "all", "from": "", "licence": "", "tokens": f"{round(totals.pop('tokens')):,}" if known else ""}
    last |= {"share, %": "100"} | {name: f"{round(total):,}" for name, total in totals.items()}
    return pd.DataFrame([*lines, last]).fillna("")


def _origin(source: Source) -> str:
    """The source's data set, or its kind: "allenai/dolmino-mix-1124", "facts"."""
    return getattr(source, "repo", None) or getattr(source, "path", None) or source.kind


def models(points: Iterable[Point]) -> pd.DataFrame:
    """A line for each point, as text: sizes, parameters, density, training tokens and what they cost."""
    return pd.DataFrame(
        {
            "point": point.name,
            "series": point.series,
            "hidden": str(point.hidden),
            "E": str(point.experts),
            "k": str(point.topk),
            "seed": str(point.seed),
            "layers": str(point.model.layers),
            "heads": str(point.heads),
            "ffn": str(point.ffn),
            "total": f"{point.total_params:,}",
            "active": f"{point.active_params:,}",
            "density": f"{point.density:.4g}",
            "tokens": f"{point.tokens:,}",
            "tokens/param": f"{point.tokens_per_param:.4g}",
            "FLOPs": f"{point.flops_per_token * point.tokens:.3g}",
        }
        for point in points
    )


def write(frame: pd.DataFrame, name: str, folder: Path) -> None:
    """`<name>.csv` and `<name>.md`."""
    frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    (folder / f"{name}.md").write_text(markdown(frame))
