"""Log-probabilities of tokens, thousands at a time.

Where FlashAttention is not installed, verl computes them row by row (`logprobs_from_logits_v2`), and gives it packed
sequences, of which a row is one token: a `logsumexp` and a node of the backward pass for each token of a batch.
"""

import torch
import verl.utils.torch_functional

CHUNK_BYTES = 64 << 20  # of logits that are exponentiated at a time


def log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log-probability of each label, by verl's arithmetic.

    Args:
        logits: [..., V].
        labels: [...], int64.

    Returns:
        [...], nats, of the logits' type.
    """
    rows = max(1, CHUNK_BYTES // (logits.shape[-1] * logits.element_size()))
    chunks = zip(logits.flatten(0, -2).split(rows), labels.reshape(-1, 1).split(rows), strict=True)
    return torch.cat([_of_chunk(*chunk) for chunk in chunks]).view(labels.shape)


def _of_chunk(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows] of logits [rows, V] and labels [rows, 1]."""
    if logits.dtype in (torch.float32, torch.float64):
        return logits.gather(-1, labels).squeeze(-1) - logits.logsumexp(dim=-1)
    return logits.log_softmax(dim=-1).gather(-1, labels).squeeze(-1)


verl.utils.torch_functional.logprobs_from_logits_v2 = log_probs
