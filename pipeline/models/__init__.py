"""The architectures, and what each of their modules has to state.

`plan`, `pretrain`, `convert`, `adopt` and the report know a model only by these names. A second architecture is a
second module here and a line in `ARCHITECTURES`; the tests in tests/unit/test_architectures.py and
tests/engines/test_architectures.py then run over it too.
"""

from typing import Any, Protocol

from pipeline.models import mixtral
from pipeline.models.shape import Divisible, Formula, Parameters, Shape, Sizes


class Architecture(Protocol):
    """What a module of an architecture states; it imports no engine."""

    # ------------------------------------------------------------------------------------------------- counts

    @property
    def FORMULAS(self) -> tuple[Formula, ...]:
        """The quantities that the report explains, each with the function that computes it."""

    def total_params(self, shape: Shape) -> int:
        """All parameters."""

    def active_params(self, shape: Shape) -> int:
        """The parameters that names of models count as active for a token."""

    def flops_per_token(self, shape: Shape) -> float:
        """Model FLOPs per token of a training step, forward and backward."""

    def impossible(self, shape: Shape) -> str | None:
        """Why no such model can be built or exported; None if it can."""

    # ------------------------------------------------------------------------------------------- Hugging Face

    @property
    def HF_TYPE(self) -> str:
        """`model_type` of config.json."""

    @property
    def HF_CLASS(self) -> str:
        """The class of transformers and vLLM, as `architectures` of config.json names it."""

    def hf_config(self, shape: Shape) -> dict[str, Any]:
        """The keys of config.json that decide which function the model computes."""

    def hf_tensors(self, shape: Shape) -> Sizes:
        """Every tensor of a released checkpoint, as `save_pretrained` names it."""

    def hf_weights(self, shape: Shape, megatron: dict[str, Any]) -> dict[str, Any]:
        """Megatron's global tensors as the state dict of transformers' model; of torch or NumPy, views where it can.

        transformers may keep several tensors of a checkpoint as one in memory, so the names are not `hf_tensors`.
        """

    # ----------------------------------------------------------------------------------------------- Megatron

    def megatron_config(self, shape: Shape) -> dict[str, Any]:
        """The fields of `TransformerConfig` that the architecture decides; `activation_func` by its name in
        `torch.nn.functional`."""

    def megatron_model(self, shape: Shape) -> dict[str, Any]:
        """The arguments of `GPTModel` that the architecture decides."""

    def megatron_tensors(self, shape: Shape) -> Sizes:
        """Every global tensor of Megatron's sharded state dict."""

    def initial_std(self, shape: Shape, name: str) -> float:
        """Standard deviation of the initial values of a matrix, by its name as a parameter of Megatron's model."""

    # ------------------------------------------------------------------------------------- parallelism, memory

    def divisible(self, shape: Shape) -> list[Divisible]:
        """The sizes that the parallel sizes of a training job have to divide."""

    def layer_params(self, shape: Shape) -> Parameters:
        """Of one layer."""

    def end_params(self, shape: Shape) -> tuple[Parameters, Parameters]:
        """Before the first layer and after the last."""

    def layer_activations(self, shape: Shape, value_bytes: int) -> float:
        """Bytes per token that one layer keeps for the backward pass, with values of `value_bytes` bytes."""


ARCHITECTURES: dict[str, Architecture] = {"mixtral": mixtral}
