"""One module per stage, read top to bottom; run as `python -m pipeline.stages.<stage>`."""
