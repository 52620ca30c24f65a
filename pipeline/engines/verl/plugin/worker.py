"""The part of the weight transfer that runs inside vLLM's worker."""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


class RunWorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension, sampling from the whole vocabulary."""

    def monkey_patch_model(self, vocab_size: int, banned_token_ids: list[int] | None = None) -> None:
        """Leave the model as it is.

        Stock verl masks the embedding rows beyond the tokenizer in vLLM, but not in the actor (nor do evaluations):
        the two would disagree by the probability of those rows, which hides whether their weights agree.
        """


class CPUWorkerExtension(RunWorkerExtension):
    """Takes new weights on a CPU, where vLLM keeps linear layers and experts in packed form.

    The stock extension loads straight into the parameters ("'Parameter' object has no attribute 'weight_loader'");
    this one goes through vLLM's own layer-wise reload.
    """

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive all weights from the trainer, a bucket at a time, and put them in place."""
        model = self.model_runner.get_model()
        for module in model.modules():
            # vLLM 0.31 packs CPU experts only together with building their kernel: a reload that finds a kernel leaves
            # them unpacked and computes nonsense without an error.
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

        def load(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            # (name, whole tensor) of one bucket. The tensors are views of a buffer that the next bucket overwrites
            # before the layer-wise reload reads them.
            model.load_weights((name, tensor.clone()) for name, tensor in weights)

        receiver = BucketedWeightReceiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            receiver.receive_weights(on_bucket_received=load)
            finalize_layerwise_reload(model, self.model_runner.model_config)
