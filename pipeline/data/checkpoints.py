"""A released checkpoint: a model repository of the Hugging Face hub at one commit."""

from pathlib import Path

from pipeline.artifacts.store import link
from pipeline.data.hub import Repository


class HubModel(Repository):
    """A model repository, of which the files at the top level are a checkpoint."""

    def __init__(self, repo: str, revision: str, state: Path) -> None:
        way_out = (
            "a node without network can adopt a folder fetched elsewhere (`adopt: {path: ...}`); the same command "
            "continues with the files that are missing"
        )
        super().__init__(repo, revision, "model", state, way_out=way_out)

    @property
    def names(self) -> list[str]:
        """Its files at the top level."""
        return [path for path in self.files if "/" not in path]

    def take(self, names: list[str], out: Path) -> None:
        """Download files that are not here yet, and link them into `out`.

        Raises:
            PipelineError: a file cannot be downloaded, or has another digest than on the hub.
        """
        for name in names:
            link(self.fetch(name), out / name)
