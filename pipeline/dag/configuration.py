"""The files of `config/` that decide what is computed, read together and once."""

from pathlib import Path
from typing import NamedTuple

from pipeline.config.claims import Claims, load_claims
from pipeline.config.scales import Grid, load_grid
from pipeline.config.studies import Studies, check_claims, load_studies
from pipeline.data.registry import Sources, load_sources


class Configuration(NamedTuple):
    """The grid file with what it includes, and the files of these names beside it."""

    grid: Grid
    sources: Sources
    claims: Claims
    studies: Studies

    @classmethod
    def read(cls, config: Path | str = "config/grid.yaml") -> "Configuration":
        """Read and check all of it.

        Raises:
            PipelineError: one line for each problem of a file, with its line and key; or a claim names no study.
        """
        grid, beside = load_grid(config), Path(config).with_name
        claims, studies = load_claims(beside("claims.yaml")), load_studies(beside("studies.yaml"))
        check_claims(claims, studies)
        return cls(grid, load_sources(beside("sources.yaml")), claims, studies)
