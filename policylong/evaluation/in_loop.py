"""Benchmarks inside a run: of the base model, and of the policy after each round, each once."""

import logging

from policylong.config import Config, Source
from policylong.corpus.files import fingerprint
from policylong.corpus.sources import source_files
from policylong.devices import hosts
from policylong.errors import UserError
from policylong.evaluation import helmet, lm_eval_tasks, longbench2, results, ruler, ruler_package
from policylong.evaluation.benchmarks import claimants, evaluate
from policylong.evaluation.policy import Policy
from policylong.evaluation.results import Options, check_lengths
from policylong.model.qwen import ModelConfig
from policylong.model.vocabulary import end_tokens
from policylong.storage.mending import whole_or_gone
from policylong.storage.workdir import Workdir, read_json, write_json
from policylong.training import scalars
from policylong.training.metrics import write_scalars

log = logging.getLogger(__name__)


class RoundEvaluation:
  """What `config.eval` asks for.

  Raises:
    UserError: a task that nobody knows, that needs what is not installed or cannot run here, or a length above the
      model's window: before the first round.
  """

  def __init__(self, config: Config, model: ModelConfig, workdir: Workdir):
    self._config, self._workdir = config, workdir
    self._model = model.trained_on(config.synthesis.sequence_length)
    if config.eval.tasks:
      for benchmark, tasks in claimants(config.eval.tasks):
        if benchmark is helmet:
          raise UserError(f"eval.tasks has {tasks[0]}, which runs from a checkout of its own: take it out, and run "
                          "python -m policylong.evaluate --tasks=helmet --helmet_dir=DIR when the run is done")
        if benchmark is ruler:
          ruler_package.check_installed()
        if benchmark in (longbench2, lm_eval_tasks):
          lm_eval_tasks.check_installed()
      check_lengths(config.eval.lengths, self._model.max_positions, f"{config.model.path}, trained on sequences of "
                    f"{config.synthesis.sequence_length} tokens,")
      if config.eval.documents.path and hosts.is_first():
        _claim_documents(workdir, config.eval.documents)

  def done(self, index: int) -> bool:
    """Whether the policy after round `index` is evaluated; what is damaged of that goes, with a line. Collective."""
    folder = self._workdir.round(index).evaluation
    if hosts.is_first():
      whole_or_gone(folder / "DONE.json", read_json)
      results.mend(folder / "results.json")
      # The base model's key tokens are those of all rounds, and it is the one to name them again.
      if not all([whole_or_gone(marker, read_json) for marker in folder.glob("key_tokens/*/DONE.json")]):
        (folder / "DONE.json").unlink(missing_ok=True)
    return not self._config.eval.tasks or bool(hosts.agreed(
        (folder / "DONE.json").exists() and (folder / "results.json").exists()))

  def run(self, index: int, state, tokenizer, mesh) -> None:
    """Evaluates the policy of `state`, as it is after round `index`, unless that is done; `DONE.json` is written last.

    Collective. LongPPL's key tokens are those of the base model, so that rounds can be compared.
    """
    if self.done(index):
      return
    folder, step = self._workdir.round(index).evaluation, int(state.step)
    evaluate(self._policy(state.params, step, tokenizer, mesh), self._config.eval.tasks, self._options(index), folder)
    if hosts.is_first():
      values = scalars.of_evaluation(read_json(folder / "results.json"))
      write_scalars(self._workdir, step, values)
      log.info("%s: %s", f"after round {index}" if index else "base model",
               ", ".join(f"{name.removeprefix('evaluation/')} {value:.3f}" for name, value in values.items()))
      write_json(folder / "DONE.json", {"policy_step": step, "round": index})
    hosts.barrier("evaluation")

  def _policy(self, params, step: int, tokenizer, mesh):
    path = self._config.model.path
    return Policy(params, self._model, tokenizer, name=f"{path} step {step}" if step else path,
                  end_tokens=sorted(end_tokens(tokenizer, path)), mesh=mesh,
                  dtype=self._config.model.scoring_dtype, batch_tokens=self._config.screening.tokens_per_batch)

  def _options(self, index: int) -> Options:
    config = self._config.eval
    return Options(
        config.lengths, config.samples, config.protocol, seed=42, apply_chat_template=False, helmet_dir=None,
        data_dir=None, include_path=None, ruler_dir=config.ruler_dir,
        documents=config.documents if config.documents.path else None, short_window=config.short_window,
        evaluator=self._config.model.path if index else None,
        keys_dir=str(self._workdir.round(0).evaluation / "key_tokens"))


def _claim_documents(workdir: Workdir, source: Source) -> None:
  """Notes what the documents are, or checks that they are still those that earlier rounds were evaluated on."""
  # the path of a data set on the hub has its commit
  held = source.path if source.kind == "hub" else fingerprint(source_files(source))
  if not workdir.documents_json.exists():
    write_json(workdir.documents_json, {"path": source.path, "holds": held})
  elif read_json(workdir.documents_json)["holds"] != held:
    raise UserError(f"{workdir.directory} began with other eval.documents than {source.path} holds now, so that its "
                    "rounds could not be compared: put the files back as they were, or choose another --workdir")
