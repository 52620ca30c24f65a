"""`python -m pipeline VERB`: look at a grid's artifacts, and at what the next run would do. Verbs: --help."""

import argparse
import sys

from pipeline import bundle, plan, status, verify, why
from pipeline.errors import PipelineError

VERBS = (plan, status, why, verify, bundle)


def main() -> None:
    """Run one verb; 1 for anything the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs)
    args = parser.parse_args()
    try:
        sys.exit(args.func(args))
    except PipelineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
