"""Synthetic results tables with a planted effect, or with none, and claims about them."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis import verdicts
from pipeline.config.claims import Claims

Value = Callable[[dict[str, Any]], float]  # of a line of the table, by its columns
WIDTHS = (32,)
EXPERTS = (4, 8, 16, 32, 64)
BITS = {"measure": "bits", "kind": "memorisation"}
ACCURACY = {"measure": "accuracy", "kind": "reasoning"}
LOSS = {"measure": "train_loss"}
ITEM = 0.01  # standard error of every row


def table(
    numbers: dict[tuple[str, str, str], Value],
    *,
    widths: Iterable[int] = WIDTHS,
    topk: Iterable[int] = (2,),
    experts: Iterable[int] = EXPERTS,
    seeds: int = 3,
    variants: Iterable[str] = ("base",),
    noise: float = 0.0,
    stderr: float = ITEM,
) -> pd.DataFrame:
    """A tidy table of (stage, task, metric) -> its value without noise.

    Args:
        noise: standard deviation of each row; every seed has a common part of the same size beside it.
    """
    rng = np.random.default_rng(7)
    common = rng.normal(0, noise, seeds) if seeds > 1 else np.zeros(1)
    rows = []
    for d in widths:
        for k in topk:
            for e in experts:
                for seed in range(seeds):
                    total, active = d * d * (e + 2), d * d * (k + 2)
                    model = {"scale": "mini", "point": f"d{d}-E{e}-k{k}" + f"-s{seed}" * bool(seed), "seed": seed}
                    model |= {"hidden": d, "experts": e, "topk": k, "series": f"d{d}-k{k}", "density": k / e}
                    model |= {"total_params": total, "active_params": active, "tokens": 10**6, "step": 100}
                    model |= {"tokens_per_param": 10**6 / total, "options": ""}
                    for variant in variants:
                        for (stage, task, metric), value in numbers.items():
                            row = model | {"variant": variant, "stage": stage, "task": task, "entry": task}
                            row |= {"metric": metric, "shots": None if stage == "pretrain" else 0}
                            exact = value(row)
                            row["value"] = exact + common[seed] + rng.normal(0, noise)
                            rows.append(row | {"stderr": stderr, "n": 1000})
    return pd.DataFrame(rows).astype({"shots": "Int64", "n": "Int64"})


def claims(*tests: tuple[dict[str, Any], dict[str, Any] | None], **keys: Any) -> Claims:
    """A claim for each (test, rows)."""
    listed = {
        f"claim-{i}": {"claim": "so it is", "source": "a test", "test": test, "rows": rows} | keys
        for i, (test, rows) in enumerate(tests)
    }
    return Claims.model_validate({"claims": listed})


def found(results: pd.DataFrame, test: dict[str, Any], rows: dict[str, Any] | None) -> verdicts.Finding:
    """What one claim's only finding is."""
    (finding,) = verdicts.verdicts(claims((test, rows)), results, "mini")
    return finding
