# Self-consistency decoding on vLLM (pipeline/stages/decode.py).


rule decode_job:
    input:
        inputs_of("decode"),
    output:
        update(f"results/{SCALE}/{{point}}/decode/{{variant}}/record.json"),
    log:
        f"logs/{SCALE}/{{point}}/decode/{{variant}}.log",
    conda:
        ENVIRONMENT
    threads: need("decode", "cores")
    resources:
        mem_mb=need("decode", "mem_mb"),
        runtime=need("decode", "runtime"),
        gpus=need("decode", "gpus"),
        gres=need("decode", "gres"),
        device="auto",
        ranks=need("decode", "ranks"),
        cache_mb=need("decode", "cache_mb"),
    params:
        scale=SCALE,
    shell:
        "python -m pipeline.stages.decode --scale {params.scale} --point {wildcards.point} --variant {wildcards.variant}"
        " --device {resources.device} --ranks {resources.ranks} --memory-mb {resources.cache_mb}"
        " &>> {log}"
