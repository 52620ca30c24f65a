# What Snakemake says in a terminal: about a line for each job, and how far those that run are
# (pipeline/commands/terminal.py). Its log has all that it says itself, and so has `snakemake -p`. The Snakemake inside a
# cluster job, and whoever chose a logger, keep what they have.

from snakemake.logging import logger

from pipeline.commands.terminal import Terminal

SAID = workflow.output_settings
if workflow.is_main_process and not (SAID.printshellcmds or SAID.verbose):
    for handler in list(logger.handlers):
        if handler.name == "DefaultStreamHandler":
            logger.removeHandler(handler)
            logger.addHandler(
                Terminal(
                    handler,
                    EXPERIMENT.jobs,
                    RESULTS,
                    SAID.dryrun,
                    SAID.show_failed_logs,
                )
            )
