"""Tasks of MTEB (Muennighoff et al. 2023, arXiv:2210.07316), by its own library, for a run or a reference encoder."""

from lab.command import reason
from lab.configurator import UserError
from lab.runs import LoadedRun


def encoder(run: LoadedRun):
    """The run as MTEB calls it: vectors as `embed` gives them, no prompts, cosine."""
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    about = {"name": f"nanoconcept/{run.config['run_id']}", "revision": f"ckpt_{run.step}"}
    about |= {"similarity_fn_name": ScoringFunction.COSINE, "embed_dim": run.config["hidden"]}

    class Run(AbsEncoder):
        model, mteb_model_meta = run, ModelMeta.create_empty(about)

        def encode(self, inputs, **_):
            """inputs: batches, each with the texts under "text" -> float32 [n, hidden]."""
            return run.encode([text for batch in inputs for text in batch["text"]])

    return Run()


def find_tasks(names) -> list:
    """MTEB's tasks of these names. UserError where it is not installed, or knows none of a name."""
    try:
        import mteb
    except ImportError:
        raise UserError("mteb is not installed; pip install mteb, or write --tasks, which need no network") from None
    try:
        return [mteb.get_task(name) for name in names]
    except KeyError as error:
        raise UserError(f"MTEB has no such task ({reason(error)}); see mteb.get_tasks()") from None


def scores(run: LoadedRun, tasks: list) -> dict[str, dict]:
    """Task -> MTEB's own record of it: {"task_name", "scores": {split: [{"main_score", ...}]}, ...}."""
    import mteb

    found = {}
    for task in tasks:
        try:
            result = mteb.evaluate(encoder(run), task, cache=None, co2_tracker=False, show_progress_bar=False)
        except (OSError, ConnectionError) as error:
            what = f"the data of MTEB's {task.metadata.name} cannot be loaded ({reason(error)})"
            remedy = "run it once with a network, which keeps them in HF_HOME, or write --tasks=stsb,sick_r --data=DIR"
            raise UserError(f"{what}; {remedy}") from None
        found[task.metadata.name] = result.task_results[0].model_dump(mode="json")
    return found
