"""Draw the figures of a scale (paper: Figures 1 to 8, as far as the scale measures them).

    python -m pipeline.stages.figures --scale mini

Reads the table artifact only. Writes `<figure>.png`, `<figure>.svg` and `figures.json` (titles, captions, alt texts).
`python -m pipeline figures --preview` draws them without publishing.
"""

from typing import Any

from pipeline.analysis.drawing import draw_all
from pipeline.runner import Context, main


def run(ctx: Context) -> dict[str, Any]:
    """Draw what there is data for; the metrics name it."""
    names = draw_all(ctx.inputs["table"], ctx.out)
    ctx.say(f"drew {', '.join(names) or 'nothing: no metric to draw'}")
    return {"figures": names}


if __name__ == "__main__":
    main("figures", run, __doc__)
