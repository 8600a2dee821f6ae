"""Which jobs an engine can never serve, however long they wait."""

from services.engine.api import DecodeJob, Job
from services.engine.runner import Runner


def unservable(job: Job, runner: Runner, num_blocks: int) -> str | None:
    """Why a pool of `num_blocks` and this runner cannot serve `job`, in words for its client; None: they can."""
    output = job.max_tokens if isinstance(job, DecodeJob) else 0
    total = len(job.prompt) + output
    capacity = num_blocks * runner.layout.block_size
    # The last token emitted is never computed, so it needs neither a position nor room.
    needed = total - 1 if output else total
    if not job.prompt:
        return "the prompt is empty"
    # A runner may refuse a whole step for one such token, and the other jobs of that step would end with it.
    if strangers := [token for token in job.prompt if not 0 <= token < runner.vocab_size]:
        return f"token id {strangers[0]}; this model's are in [0, {runner.vocab_size})"
    if isinstance(job, DecodeJob) and (job.max_tokens < 1 or job.choices < 1):
        return f"max_tokens {job.max_tokens} and choices {job.choices}; both must be at least 1"
    if isinstance(job, DecodeJob) and not 0 <= job.split < len(job.prompt):
        return f"split {job.split} is not in [0, {len(job.prompt) - 1}]"
    if isinstance(job, DecodeJob) and job.sampling.prompt_logprobs is not None and not runner.scores_prompts:
        return "logprobs of the prompt (echo with logprobs), which this engine does not compute for this kind of model"
    if isinstance(job, DecodeJob) and job.sampling.prompt_logprobs is not None and job.split:
        return f"split {job.split} with logprobs of the prompt; they need split 0: all of it is computed where they are"
    if total > runner.context_length:
        return f"{total} tokens (prompt and output); the model's context is {runner.context_length}"
    if needed > capacity:
        return f"{total} tokens (prompt and output); the KV memory of this instance holds {capacity}"
    return None
