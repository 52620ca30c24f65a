"""Speed of the decode stage's sampling (vLLM) against `generate` of transformers, on one random Mixtral.

    python benchmarks/decode.py [--device cuda] [--hidden 128 --layers 4 --experts 8 --vocab 4096]

Both draw the same number of samples of the same questions with the same temperature, top-p and token limit, fp32 on a
CPU and bf16 on a GPU; each is run twice and the second run counts, without imports, loading and warm-up. Tokens are
those up to the end of text. On a shared machine trust tokens a CPU second, not tokens a second.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.evaluations import Decode
from pipeline.config.recipes import DTYPES
from pipeline.data.sources.sums import GeneratedSums
from pipeline.engines import vllm as engine
from pipeline.runtime.execution import Execution, prepare_environment
from pipeline.runtime.quiet import quietly
from pipeline.tasks import TASKS
from pipeline.tasks.items import Question

EOD = "<|eod|>"


def build(folder: Path, hidden: int, layers: int, experts: int, vocab: int) -> None:
    """A random Mixtral (top-2) with a tokenizer that knows the words of the sums task."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

    words = [EOD, "question", "answer", ":", "=", ";", "####", "+", "-", "*", *map(str, range(97))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=EOD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOD, pad_token=EOD).save_pretrained(folder)
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        num_local_experts=experts,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    MixtralForCausalLM(config).save_pretrained(folder)


def measure(name: str, draw: Callable[[], int]) -> None:
    """Print the speed of the second of two runs of `draw`, which returns the number of tokens it drew."""
    draw()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = draw()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{name:13} {tokens} tokens: {tokens / wall:8,.0f} a second {tokens / cpu:8,.0f} a CPU second", flush=True)


@quietly()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    sizes = {"hidden": 128, "layers": 4, "experts": 8, "vocab": 4096, "questions": 32, "samples": 16, "max_tokens": 32}
    for option, default in sizes.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args()
    execution = Execution(device=args.device, memory_mb=1024)
    prepare_environment(execution)
    with engine.quick_imports():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from vllm import LLM
    from pipeline.stages import decode

    dtype = "bf16" if execution.on_gpu else "fp32"
    asked = {"tasks": [{"task": "sums"}], "samples": args.samples, "max_tokens": args.max_tokens, "dtype": dtype}
    config = Decode.model_validate(asked)
    items = itertools.islice(GeneratedSums(kind="sums", modulus=7, max_terms=4, documents=1).stream(test=True), 1000)
    alike = (item for item in items if len(item.question.split()) == 9)  # of one length: padding costs neither side
    questions = [
        Question("sums", i, TASKS["sums"].prompt(item.question), item.question, item.answer, item.gold)
        for i, item in enumerate(itertools.islice(alike, args.questions))
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder, args.hidden, args.layers, args.experts, args.vocab)
        with engine.serving(LLM, folder, engine.options(dtype, None, 0, execution)) as llm:
            measure("decode stage", lambda: sum(row["tokens"] for row in decode.sample(llm, questions, config)))

        device = "cuda" if execution.on_gpu else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, DTYPES[dtype])).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prompts = tokenizer([question.prompt for question in questions], return_tensors="pt").to(device)

        def generate() -> int:
            out = model.generate(
                **prompts,
                do_sample=True,
                temperature=config.temperature,
                top_p=config.top_p,
                top_k=0,
                max_new_tokens=config.max_tokens,
                num_return_sequences=config.samples,
            )[:, prompts["input_ids"].shape[1] :]
            ended = (out == tokenizer.eos_token_id).cumsum(1)
            return int((ended == 0).sum() + (ended == 1).any(1).sum())

        measure("transformers", generate)


if __name__ == "__main__":
    main()
