"""`python -m pipeline VERB`: look at a grid's artifacts, and at what the next run would do. Verbs: --help."""

import argparse
import sys

from pipeline.errors import PipelineError
from pipeline.runtime.quiet import quietly


@quietly()
def main() -> None:
    """Run one verb; 1 for anything the user can mend."""
    from pipeline.commands import (
        advise,
        bundle,
        claims,
        config,
        figures,
        plan,
        status,
        verify,
        why,  # here, so that Ctrl-C meanwhile is quiet too
    )

    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (plan, status, why, verify, claims, figures, advise, config, bundle):
        verb.add_parser(verbs)
    args = parser.parse_args()
    try:
        sys.exit(args.func(args))
    except PipelineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
