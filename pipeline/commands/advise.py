"""What to train within a budget, by laws fitted to a scale's finished table: `python -m pipeline advise`.

Width, experts, top-k and tokens whose predicted loss is lowest, with how sure that is and how far outside what was
measured it lies (docs/howto/advise.md). Reads results/<scale>/table and writes nothing.
"""

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from pipeline.commands.common import add_common
from pipeline.commands.figures import reservation
from pipeline.dag.dag import Dag
from pipeline.planning.gpu_memory import GB
from pipeline.planning.words import aligned

if TYPE_CHECKING:
    from pipeline.analysis.advice import Advice
    from pipeline.analysis.budget import Budget


def lines_of(advice: "Advice", budget: "Budget") -> list[str]:
    """The answer for people."""
    point, law = advice.point, advice.trials[0]
    assert law.law is not None
    rows = [["law", "parameters", "held-out error", ""]]
    for t in advice.trials:
        error = f"{t.error:.2%}" if t.law else "-"
        rows.append(
            [t.form.name, str(t.form.parameters), error, f"skipped: {t.skipped}" if t.skipped else t.form.source]
        )
    outside = [f"  outside what was measured: {axis.text}" for axis in advice.outside]
    held = [f"  held where the table has it: {name} {value:.4g}" for name, value in advice.held.items()]
    others = [f"  the law '{name}' would choose {model}" for name, model in advice.others.items()]
    return [
        f"{len(advice.runs)} runs of {advice.runs['model'].nunique()} models; {advice.what}, lower is better",
        *aligned(rows, right={1, 2}),
        f"{law.form.name}: L = {law.law.text}",
        "",
        f"train {point.name}: width {point.hidden}, {point.experts} experts, top-{point.topk}, "
        f"{point.tokens:.3g} tokens ({point.pretrain.steps} steps of the scale's batch)",
        f"  predicted loss {advice.loss:.4g}, 95 % interval {advice.interval[0]:.4g} to {advice.interval[1]:.4g}; "
        f"models held out were missed by {law.error:.2%} on average",
        f"  takes {advice.flops:.3g} of {budget.flops:.3g} FLOPs and {advice.place.memory / GB:.3g} of "
        f"{budget.usable / GB:.3g} GB that can be planned with, in layout {advice.place.layout} with micro-batch "
        f"{advice.place.micro_batch}",
        f"  {advice.share:.0%} of {advice.draws} bootstrap fits choose this width, experts and top-k; 95 % of them "
        f"{_ranges(advice.choices)}",
        f"  as good, as far as the law's held-out error can tell: {_ranges(advice.alike)}",
        *others,
        *(outside or ["  within the measured range of parameters, tokens and sparsity"]),
        f"  nearest measured model: {advice.nearest}, {advice.away:.2f} times away on its worst axis",
        *held,
        *(
            f"  measured at two values only, so that the law guesses what lies between: {name}"
            for name in advice.coarse
        ),
    ]


NAMES = {"hidden": "width", "experts": "experts", "topk": "top-k", "tokens": "tokens"}


def _ranges(spans: dict[str, tuple[float, float]]) -> str:
    """ "width 512 to 1024, experts 8, ...": the smallest and the largest of each."""
    parts = []
    for column, (low, high) in spans.items():
        ends = [f"{end:.3g}" if column == "tokens" else f"{end:.0f}" for end in (low, high)]
        parts.append(f"{NAMES[column]} {' to '.join(dict.fromkeys(ends))}")
    return ", ".join(parts)


def describe(advice: "Advice", budget: "Budget") -> dict[str, Any]:
    """The answer as data; memory in bytes."""
    point, law = advice.point, advice.trials[0].law
    assert law is not None
    return {
        "loss": advice.what,
        "runs": len(advice.runs),
        "models": int(advice.runs["model"].nunique()),
        "laws": [
            {"name": t.form.name, "source": t.form.source, "parameters": t.form.parameters, "needs": t.form.needs}
            | ({"held_out_error": t.error, "law": t.law.text} if t.law else {"skipped": t.skipped})
            for t in advice.trials
        ],
        "law": {
            "name": law.form.name,
            "terms": law.form.terms,
            "centre": {name: math.exp(value) for name, value in law.centre.items()},
            "coefficients": law.coefficients.tolist(),
        },
        "budget": {"flops": budget.flops, "memory": budget.memory, "gpus": budget.gpus},
        "best": {
            "point": point.name,
            "hidden": point.hidden,
            "experts": point.experts,
            "topk": point.topk,
            "tokens": point.tokens,
            "steps": point.pretrain.steps,
            "total_params": point.total_params,
            "active_params": point.active_params,
            "flops": advice.flops,
            "memory": advice.place.memory,
            "micro_batch": advice.place.micro_batch,
            "layout": str(advice.place.layout),
        },
        "predicted": {"loss": advice.loss, "low": advice.interval[0], "high": advice.interval[1]},
        "draws": advice.draws,
        "share": advice.share,
        "choices": {name: [float(end) for end in ends] for name, ends in advice.choices.items()},
        "alike": {name: [float(end) for end in ends] for name, ends in advice.alike.items()},
        "others": advice.others,
        "outside": [vars(axis) | {"factor": axis.factor} for axis in advice.outside],
        "nearest": {"point": advice.nearest, "factor": advice.away},
        "held": advice.held,
        "coarse": advice.coarse,
    }


def run(args: argparse.Namespace) -> int:
    """Print the advice."""
    import pandas as pd  # here, because pandas and scipy are slow to import

    from pipeline.analysis.advice import advise, runs_of
    from pipeline.analysis.budget import Budget

    dag = Dag.load(args.scale, args.config)
    note = reservation(dag, args.results)
    table = pd.read_parquet(args.results / dag.job("table").folder / "results.parquet")
    runs, what = runs_of(table, args.aim)
    budget = Budget(args.flops, args.memory_gb * GB, args.gpus)
    beyond = "stay" if args.inside else "go" if args.extrapolate else "refuse"
    advice = advise(dag.scale, runs, what, budget, args.factor, beyond, args.draws)
    if args.json:
        print(json.dumps({"scale": dag.name, "note": note} | describe(advice, budget), indent=2))
    else:
        print("\n".join([*([note] if note else []), *lines_of(advice, budget)]))
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _factor(text: str) -> float:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def add_parser(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb to the command line."""
    parser = verbs.add_parser("advise", help="what to train within a budget", description=__doc__)
    add_common(parser)
    parser.add_argument("--flops", required=True, type=_positive, help="FLOPs of training, forward and backward")
    parser.add_argument("--memory-gb", required=True, type=_positive, help="memory of one GPU, in GB (1e9 bytes)")
    parser.add_argument("--gpus", default=1, type=_count, help="GPUs that training is cut over (default: %(default)s)")
    parser.add_argument(
        "--for",
        dest="aim",
        choices=["reasoning", "memorisation"],
        help="what the model is to be good at: task loss of such tasks (default: pre-training loss)",
    )
    parser.add_argument(
        "--factor",
        default=2.0,
        type=_factor,
        help="how many times outside the measured ranges an answer may lie (default: %(default)s)",
    )
    further = parser.add_mutually_exclusive_group()
    further.add_argument("--inside", action="store_true", help="look only at models within --factor of the ranges")
    further.add_argument("--extrapolate", action="store_true", help="answer whatever lies further outside")
    parser.add_argument("--draws", default=200, type=_count, help="bootstrap fits (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="all numbers as JSON")
    parser.set_defaults(func=run)
