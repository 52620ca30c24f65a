"""verl as a process: the recipe as its settings, its launch and its end, its metrics, its checkpoints.

The training itself is verl's (`verl.trainer.main_ppo`): GRPO, Ray, FSDP actor and reference, vLLM rollouts.
What stock verl lacks for Mixtral and for CPUs is in `pipeline.engines.verl.plugin`.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import pipeline
from pipeline.config import verl_keys
from pipeline.config.recipes import DTYPES, Grpo
from pipeline.engines.verl.outputs import logged
from pipeline.errors import PipelineError
from pipeline.runtime.execution import Execution, die_with_parent, end_processes, processes

RUN = "GRPO_RUN"  # environment variable that names the run's folder in /tmp; all its processes inherit it
START = Path(__file__).with_name("start")  # sitecustomize.py of all its processes
MAIN = "pipeline.engines.verl.main"
PLUGIN = "pipeline.engines.verl.plugin"
ERROR_LINES = 30
POLL_S = 0.5
WORKERS = ("WorkerDict", "RunServer", "TransferQueue", "SimpleStorage")  # Ray actors that last a run
LOST = ("ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "OutOfMemoryError", "EngineDeadError")
NO_DUAL_CLIP = 1e9  # verl keeps the logarithm of the ratio within 20, so that no ratio reaches this
GRACE_S = 30  # verl's own end takes its workers first
SLOW_START = "The current node timed out during startup"  # Ray's, after 30 seconds that no setting changes
STARTS = 3

Report = Callable[[dict[int, dict[str, Any]]], None]


def overrides(recipe: Grpo, execution: Execution, checkpoint: Path, work: Path, train_rows: int) -> list[str]:
    """The recipe in verl's terms, as Hydra overrides of its `ppo_trainer` configuration; its `extra` comes last.

    Args:
        checkpoint: Hugging Face folder of the model.
        work: folder with train.parquet and validation.parquet; checkpoints go below it.
        train_rows: rows of train.parquet, at least `recipe.prompts`.
    """
    cpu, dtype = not execution.on_gpu, DTYPES[recipe.dtype]
    precision = f"{{param_dtype:{recipe.dtype},reduce_dtype:fp32,buffer_dtype:fp32}}"
    settings = {
        # Advantages relative to the other samples of a prompt, without a critic (verl's default is GAE). The KL term is
        # in the loss, below, and not in the reward.
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "data.train_files": work / "train.parquet",
        "data.val_files": work / "validation.parquet",
        "data.train_batch_size": recipe.prompts,
        "data.max_prompt_length": recipe.max_prompt,
        "data.max_response_length": recipe.max_response,
        "data.seed": recipe.seed,  # of the order of questions; by default there is none
        "data.dataloader_num_workers": 0,  # rows are short texts: worker processes would cost more than the reading
        "actor_rollout_ref.model.path": checkpoint,
        # FlashAttention 2, verl's choice, is not installed. Without it packed sequences (remove_padding) would cost a
        # mask of (tokens per micro-batch)^2.
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.model.use_remove_padding": False,
        # It saves GPU memory and costs a second forward pass, which models that fit a CPU do not need to pay.
        "actor_rollout_ref.model.enable_gradient_checkpointing": execution.on_gpu,
        "actor_rollout_ref.actor.strategy": "fsdp2",  # by default FSDP1, for which plugin/l1_clip.py is not written
        "actor_rollout_ref.actor.optim.lr": recipe.lr,
        "actor_rollout_ref.actor.optim.weight_decay": recipe.weight_decay,
        "actor_rollout_ref.actor.optim.clip_grad": recipe.clip_grad,
        "actor_rollout_ref.actor.ppo_mini_batch_size": recipe.mini_batch,
        "actor_rollout_ref.actor.use_dynamic_bsz": True,  # micro-batches by tokens: changes memory, not the sum
        # verl reads the lower and the upper bound; the first key serves what still reads one for both.
        "actor_rollout_ref.actor.clip_ratio": recipe.clip,
        "actor_rollout_ref.actor.clip_ratio_low": recipe.clip,
        "actor_rollout_ref.actor.clip_ratio_high": recipe.clip,
        "actor_rollout_ref.actor.clip_ratio_c": recipe.dual_clip or NO_DUAL_CLIP,
        "actor_rollout_ref.actor.use_kl_loss": True,
        "actor_rollout_ref.actor.kl_loss_coef": recipe.kl_coef,
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",  # Schulman's k3, as in GRPO's paper
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "actor_rollout_ref.actor.data_loader_seed": recipe.seed,
        # Compiling takes longer than runs on a CPU do. Actor and reference each have a switch, and FSDP's own besides.
        "actor_rollout_ref.actor.use_torch_compile": execution.on_gpu,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": execution.on_gpu,
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile": execution.on_gpu,
        # The recipe's precision for weights and activations of a pass; the actor's master weights, gradients and
        # moments stay fp32. By default verl computes in bf16 whatever the recipe.
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision": precision,
        "+actor_rollout_ref.ref.fsdp_config.mixed_precision": precision,
        "actor_rollout_ref.ref.fsdp_config.model_dtype": recipe.dtype,
        # hf_model: the checkpoint that is published. It is written beside the shards that a run resumes from.
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "actor_rollout_ref.actor.checkpoint.load_contents": "[model,optimizer,extra]",
        "actor_rollout_ref.rollout.name": "vllm",
        "actor_rollout_ref.rollout.n": recipe.rollouts,
        "actor_rollout_ref.rollout.temperature": recipe.temperature,
        "actor_rollout_ref.rollout.dtype": dtype,  # by default bf16, whatever the recipe
        "actor_rollout_ref.rollout.seed": recipe.seed,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": execution.tp,
        # vLLM would take the model's whole context and size its cache for it.
        "actor_rollout_ref.rollout.max_model_len": recipe.max_prompt + recipe.max_response,
        # Bytes, not a share of the device: a share has no meaning on a CPU, and on a GPU the actor needs the rest.
        "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes": execution.memory_mb << 20,
        "actor_rollout_ref.rollout.enable_chunked_prefill": False,  # vLLM 0.31 on CPU: stops at seeded split prompts
        # Rewards come with the rollouts (plugin/rollouts.py), so that verl's own reward workers would be idle.
        "actor_rollout_ref.model.external_lib": f"{PLUGIN}.{'l1_clip' if recipe.l1_clip else 'registry'}",
        "+actor_rollout_ref.rollout.agent.agent_loop_manager_class": f"{PLUGIN}.rollouts.BatchRollouts",
        "reward.custom_reward_function.path": "pkg://pipeline.tasks.reward",
        "reward.custom_reward_function.name": "compute_scores",
        "+reward.custom_reward_function.reward_kwargs.kind": recipe.reward,
        "reward.num_workers": 0,
        "trainer.n_gpus_per_node": execution.ranks,
        # Steps end the run. Epochs have to be enough for them: verl stops at whichever it reaches first.
        "trainer.total_training_steps": recipe.steps,
        "trainer.total_epochs": recipe.steps * recipe.prompts // train_rows + 1,
        # By default verl neither validates nor saves.
        "trainer.test_freq": recipe.eval_interval,
        "trainer.save_freq": execution.save_interval,
        "trainer.max_actor_ckpt_to_keep": 2,  # the one before, in case a kill tears the last
        "trainer.default_local_dir": work / "checkpoints",
        "trainer.logger": "[file]",  # by default Weights & Biases, which wants a network and an account
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,  # each is a process of its own
        # A Ray of this job's own: `auto` would join one that happens to run on the machine.
        "+ray_kwargs.ray_init.address": "local",
        "+ray_kwargs.ray_init.include_dashboard": False,
        "hydra.run.dir": work / "hydra",  # by default a folder `outputs` in the working directory
        "hydra.output_subdir": "null",
    }
    if cpu:
        settings |= {
            "trainer.device": "cpu",
            "ray_kwargs.ray_init.num_cpus": 8 + 4 * execution.ranks,  # logical: verl's actors hold one each
            "+ray_kwargs.ray_init.num_gpus": execution.ranks,  # logical too: ranks are placed on "GPUs" (platform.py)
            # verl offloads the reference model to pinned memory, which needs an accelerator.
            "actor_rollout_ref.ref.fsdp_config.forward_only": False,
            "+actor_rollout_ref.ref.optim": "{_target_:verl.workers.config.FSDPOptimizerConfig,lr:0}",
            "actor_rollout_ref.rollout.enforce_eager": True,  # compiling takes longer than our runs
            # Between rollouts vLLM would hand its memory to the actor, by CUDA's virtual memory.
            "actor_rollout_ref.rollout.free_cache_engine": False,
            "+actor_rollout_ref.rollout.enable_sleep_mode": False,
            # The buffer through which weights go to vLLM is allocated whole: 2 GB by default.
            "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes": 64,
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend": "uni",  # one process
        }
    extra = {f"+{key}" if verl_keys.added(key) else key: literal(value) for key, value in recipe.extra.items()}
    ours = {key: quoted(value) if isinstance(value, Path) else str(value) for key, value in settings.items()}
    return [f"{key}={value}" for key, value in (ours | extra).items()]


def literal(value: verl_keys.Value) -> str:
    """A value of the configuration as Hydra's grammar takes it; text stays text, whatever it looks like."""
    if value is None:
        return "null"
    return quoted(value) if isinstance(value, str) else str(value).lower()


def quoted(text: Path | str) -> str:
    """Text as Hydra's grammar takes it, whatever characters are in it; `${` would begin an interpolation.

    In quotes a backslash is itself, except where backslashes stand before a quote (the closing one too) or before `${`.
    """
    escaped = re.sub(r"(\\*)(\$\{|'|\Z)", lambda end: 2 * end[1] + (end[2] and "\\" + end[2]), str(text))
    return f"'{escaped}'"


def run_folder(work: Path) -> Path:
    """The folder of a run's sockets: short, because a socket's path may have 107 characters, and its own.

    Derived from `work`, so that the next launch finds what a killed one left.
    """
    return Path("/tmp") / f"grpo-{hashlib.sha256(str(work.resolve()).encode()).hexdigest()[:12]}"


def environment(folder: Path, metrics: Path, execution: Execution) -> dict[str, str]:
    """The environment of verl's processes; each inherits it from the one that starts it."""
    env = os.environ | {
        RUN: str(folder),
        "PYTHONPATH": os.pathsep.join([str(START), str(Path(pipeline.__file__).parents[1]), *sys.path[1:]]),
        "VERL_USE_EXTERNAL_MODULES": PLUGIN,
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "HF_DATASETS_CACHE": str(folder / "datasets"),  # `datasets` makes file names of this path: it has to be short
        "RAY_DEDUP_LOGS": "1",
        "RAY_enable_worker_prestart": "0",  # idle workers cost 2 CPU seconds each
        "RAY_prestart_worker_first_driver": "0",
    }
    if not execution.on_gpu:
        env |= {"VERL_PLATFORM": "cpu", "VERL_ENGINE_DEVICE": "cuda"}  # the FSDP engine serves a CPU as it is
        env.pop("CUDA_VISIBLE_DEVICES", None)  # Ray counts logical GPUs, and compares their number with this
    return env


def end_run(folder: Path) -> int:
    """Kill every process of the run `folder`, remove the folder, and return how many processes there were."""
    ended = end_processes(RUN, str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def workers(folder: Path) -> set[int]:
    """Process ids of the run's Ray actors on this machine."""
    alive = set()
    for process in processes(RUN, str(folder)):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::") and any(name in title for name in WORKERS):
            alive.add(process.pid)
    return alive


class Watch:
    """Notices that a worker of a run is gone and does not come back.

    verl itself does not: an actor that sends weights to a vLLM server that the system killed waits forever.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[int] = set()
        self.since: float | None = None
        self.looked = 0.0

    def lost(self) -> bool:
        """Whether a worker has been missing for `GRACE_S` seconds; looks every few seconds only."""
        now = time.monotonic()
        if now - self.looked > GRACE_S / 10:
            self.looked, alive = now, workers(self.folder)
            self.seen |= alive
            if self.seen == alive:
                self.since = None
            elif self.since is None:
                self.since = now
        return self.since is not None and now - self.since > GRACE_S


def last_error(log: Path) -> str:
    """The part of verl's log that tells why it ended: from the last traceback on, else the last lines."""
    lines = re.sub(r"\x1b\[\d*m", "", log.read_text(errors="replace")).splitlines()
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    tail = lines[starts[-1] :] if starts else lines
    return "\n".join(tail[-ERROR_LINES:])


def train(settings: list[str], work: Path, metrics: Path, execution: Execution, report: Report) -> None:
    """Run verl's trainer to its end.

    Args:
        settings: `overrides`.
        metrics: file for one line of JSON per step (verl's `file` logger, which empties the file first).
        report: called with the metrics of each step so far of this launch, whenever verl has logged.

    Raises:
        PipelineError: verl failed; with the end of its log. Checkpoints so far stay in `work`.
    """
    log = metrics.with_suffix(".log")
    for _ in range(STARTS):
        status = _launch(settings, work, metrics, execution, report)
        text = log.read_text(errors="replace")
        if status in (0, None) or SLOW_START not in text:
            break
        print(f"{log}: Ray did not start within its 30 seconds, as on a busy machine; trying again", flush=True)
    if status == 0:
        return
    named = (name for name in LOST if name in text)
    if lost := "killed while verl waited for it" if status is None else next(named, None):
        raise PipelineError(
            f"{log}: verl lost one of its worker processes ({lost}); most often the system killed it for its "
            f"memory: run fewer jobs at once (mem_mb in the profile), or lower cache_mb or raise ranks for "
            f"grpo_job; the same command continues from the last save. The end of the log:\n{last_error(log)}"
        )
    raise PipelineError(
        f"{log}: verl ended with status {status}; the same command continues from its last save. "
        f"The end of the log:\n{last_error(log)}"
    )


def _launch(settings: list[str], work: Path, metrics: Path, execution: Execution, report: Report) -> int | None:
    """One launch of verl; its exit status, or None if a worker was lost while it waited."""
    folder, log = run_folder(work), metrics.with_suffix(".log")
    end_run(folder)
    folder.mkdir(mode=0o700)
    command = [sys.executable, "-m", MAIN, *settings, f"+ray_kwargs.ray_init._temp_dir={folder}"]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` is reached
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                env=environment(folder, metrics, execution),
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )
            watch, size = Watch(folder), 0
            while (status := child.poll()) is None and not watch.lost():
                time.sleep(POLL_S)
                if metrics.exists() and (now := metrics.stat().st_size) != size:
                    size = now
                    report(dict(logged(metrics)))
            if metrics.exists():  # the last step, logged just before the end
                report(dict(logged(metrics)))
    finally:
        end_run(folder)
        signal.signal(signal.SIGTERM, before)
    return status
