"""Supervised fine-tuning: a model learns the assistant's part of conversations.

  read   : conversations from chat JSONL; bad ones are counted and skipped, a share is held out
  render : by the tokenizer's own chat template, which also tells the assistant's tokens
  pack   : several conversations a sequence, each whole, none seeing another
  train  : next-token loss on the answers (or on everything), the mean over a step's tokens
  judge  : loss on the held-out answers, before and after

Training is that of the loop, as one round. `run` may be killed at any instant and called again.
"""

import contextlib
import logging
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator

import numpy as np
from etils import epath

from policylong import config as config_lib
from policylong import door
from policylong.corpus.conversations import EMPTY_ANSWER, Conversation, read_conversations
from policylong.corpus.files import find_files, fingerprint, size_of
from policylong.devices import hosts
from policylong.devices.mesh import make_mesh
from policylong.errors import UserError
from policylong.model import identity
from policylong.model.chat import Chat, Example, NotRendered
from policylong.model.stored import StoredModel, describe, open_model
from policylong.storage import hub, lock, manifest, mending, progress
from policylong.storage.progress import Bar
from policylong.storage.workdir import Workdir, read_json, write_atomically, write_json
from policylong.synthesis.packing import pack
from policylong.synthesis.storage import read_tokens, sequence_paths, write_records
from policylong.training import wandb_run
from policylong.training.held_out import HeldOut
from policylong.training.metrics import write_scalars
from policylong.training.train import Trainer

log = logging.getLogger(__name__)

NO_TOKENS = "no token of an answer is left by the chat template"


def run(config: config_lib.FineTuning, directory, base_model: str | None = None) -> dict:
  """Runs or resumes a fine-tuning in the working directory; returns what final.json says.

  Args:
    config: of the fine-tuning.
    directory: the working directory.
    base_model: as of `stored.open_model`, where model.path is a run.

  Returns:
    step; held_out: {tokens, before, after} with losses in nats a token, or None where nothing is held out.

  Raises:
    UserError: bad input of any kind, in one sentence, before expensive work where that is possible.
  """
  workdir = Workdir(directory)
  with lock.held(workdir.lock, str(workdir.directory), follows=not hosts.is_first(), lost=hosts.end):
    with hosts.first_before_others("claim"):
      workdir.claim(config, hosts.is_first())
      if hosts.is_first():
        mending.whole_or_gone(workdir.final_json, read_json)
    if hosts.agreed(workdir.final_json.exists()):
      if hosts.is_first():
        log.info("%s: the fine-tuning is done; nothing to do", workdir.directory)
      return read_json(workdir.final_json)
    with (progress.told(workdir.progress, hosts.index(), hosts.count()), wandb_run.opened(config, workdir),
          contextlib.ExitStack() as closing):
      _tune(workdir.located(config), workdir, base_model, closing)
    return read_json(workdir.final_json)


def _tune(config: config_lib.FineTuning, workdir: Workdir, base_model: str | None,
          closing: contextlib.ExitStack) -> None:
  """Every stage that is not over yet; final.json is written last. `closing` closes what must be, however they end."""
  with hosts.first_before_others("hub"):
    path = hub.folder(config.model.path, workdir.hub_json)
  model = open_model(path, config.model.sha256, base_model)
  if hosts.is_first():
    identity.claim_base(workdir, config.model.path, model.identity())
  mesh = make_mesh(config.mesh)
  with hosts.first_before_others("conversations"):
    if hosts.is_first() and _prepared(workdir):
      _check_conversations(config.data.path, workdir)
    elif hosts.is_first():
      write_json(workdir.sequences_json, _Preparation(config, model).write(workdir))
  counts = read_json(workdir.sequences_json)
  if hosts.is_first():
    log_counts(counts, config)
  training = config.training.as_training(counts["sequences"])
  length = config.data.sequence_length
  trainer = closing.enter_context(Trainer(
      training, model.config, mesh, workdir, length=length, rounds=1, seed=config.seed))
  door.check_training(training, trainer.abstract, workdir, rounds=1, sequences=0, length=length)  # they are written
  state = trainer.restore_latest() or trainer.initial(model.load(np.float32, mesh))
  with hosts.first_before_others("mend"):
    if hosts.is_first():
      mending.whole_or_gone(workdir.held_out_json, read_json)
  held_out = None
  if counts["held_out_sequences"]:
    packed = read_tokens(sequence_paths(workdir.held_out_sequences))
    if packed.shape != (counts["held_out_sequences"], 3 * length):
      raise UserError(f"{workdir.held_out_sequences} has lost some of its {counts['held_out_sequences']} sequences: "
                      f"delete {workdir.sequences} and start again, and they are made anew")
    held_out = HeldOut(packed.reshape(-1, 3, length), training, model.config, mesh)
  if held_out and not hosts.agreed(workdir.held_out_json.exists()):
    loss = held_out.loss(trainer.initial(model.load(np.float32, mesh)).params if int(state.step) else state.params)
    if hosts.is_first():
      write_scalars(workdir, 0, {"held_out/loss": loss.nats})
      write_json(workdir.held_out_json, {"tokens": loss.tokens, "before": loss.nats})
      log.info("held-out answers: %.4f nats a token before (%d tokens)", loss.nats, loss.tokens)
  state = trainer.train_round(state, 1, sequence_paths(workdir.sequences), counts["mean_attended_tokens"])
  after = held_out.loss(state.params).nats if held_out else None
  if hosts.is_first():
    found = {**read_json(workdir.held_out_json), "after": after} if held_out else None
    if after is not None:
      write_scalars(workdir, int(state.step), {"held_out/loss": after})
    write_json(workdir.final_json, {"step": int(state.step), "held_out": found})
  hosts.barrier("done")


def _files(path: str) -> list[epath.Path]:
  return [file for file, _ in find_files(path, "jsonl", "data.path")]


def _check_conversations(path: str, workdir: Workdir) -> None:
  """Raises a UserError where data.path holds other conversations than those that were packed."""
  packed = read_json(workdir.sequences_json).get("fingerprint")
  if packed is not None and packed != fingerprint(_files(path)):
    raise UserError(f"{workdir.directory} began with other conversations than {path} holds now: put the files back as "
                    "they were, or choose another --workdir")


def _prepared(workdir: Workdir) -> bool:
  """Whether the sequences and the model's description are there and whole; what is damaged goes, with a line."""
  if not workdir.sequences_json.exists():
    return False
  folders = [workdir.model, workdir.sequences]
  if whole := mending.whole_or_gone(workdir.sequences_json, read_json):
    folders += [workdir.held_out_sequences] * bool(read_json(workdir.sequences_json)["held_out_sequences"])
    whole = all([mending.whole_or_gone(folder, manifest.check) for folder in folders])
  if not whole:
    workdir.sequences_json.unlink(missing_ok=True)
  return whole


class _Preparation:
  """From the files to packed sequences on disk, with everything counted."""

  def __init__(self, config: config_lib.FineTuning, model: StoredModel):
    self._data, self._seed, self._model = config.data, config.seed, model
    self._chat = Chat(model.tokenizer, config.model.path)
    self._files = _files(self._data.path)
    self._longest = min(self._data.sequence_length, model.config.max_positions)
    self._skipped: Counter[str] = Counter()
    self._counts: Counter[str] = Counter()
    self._by_the_template: set[str] = set()  # reasons that the chat template gave

  def write(self, workdir: Workdir) -> dict:
    """Writes the model's description and all sequences; returns the counts.

    Raises:
      UserError: no conversation is left to train on, or none to hold out.
    """
    self._describe(workdir)
    counts: dict = {"fingerprint": fingerprint(self._files), "held_out_sequences": 0}
    held_out = self._held_out()
    if held_out:
      counts["held_out_sequences"] = self._pack("held_out", held_out, True, workdir.held_out_sequences)
    counts["sequences"] = self._pack("trained", held_out, False, workdir.sequences)
    if not counts["sequences"]:
      raise UserError(self._nothing())
    if held_out and not counts["held_out_sequences"]:
      raise UserError(f"data.held_out is {self._data.held_out}, and none of the {len(held_out)} conversations of "
                      f"{self._data.path} that it chooses can be used (skipped in the whole file: {self._in_words()}): "
                      "raise it, or set it to 0")
    places = counts["sequences"] * self._data.sequence_length
    tokens, squares = self._counts["trained_tokens"], self._counts.pop("trained_squares")
    self._counts.pop("held_out_squares", None)
    return {**self._counts, **counts, "skipped": dict(self._skipped), "filled": tokens / places,
            "mean_attended_tokens": squares / tokens}

  def _describe(self, workdir: Workdir) -> None:
    """model/: the tokenizer ends a generation where its template ends an answer."""
    tokenizer, end = self._model.tokenizer, self._chat.end_of_turn
    if end is not None and end != tokenizer.eos_token_id:
      token = tokenizer.convert_ids_to_tokens(end)
      log.info("the template ends answers with %s: it takes the place of %s as the end token", token,
               tokenizer.eos_token)
      tokenizer.eos_token = token
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary)
      describe(self._model.config, tokenizer, self._model.end_tokens | ({end} - {None}), folder)
      for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        write_atomically(workdir.model / path.relative_to(folder), path.read_bytes())
    manifest.write(workdir.model)

  def _held_out(self) -> set[int]:
    """The draws of the conversations that are not trained on: the smallest ones, so many as the config says."""
    if not self._data.held_out:
      return set()
    draws = sorted({conversation.draw(self._seed) for conversation in self._read("choosing the held-out ones")
                    if not conversation.reason})
    return set(draws[:max(1, round(self._data.held_out * len(draws)))])

  def _pack(self, name: str, held_out: set[int], wanted: bool, folder: epath.Path) -> int:
    """Packs the conversations that are, or are not, held out; returns the number of sequences."""
    everything = self._data.loss_on == "everything" and not wanted

    def examples() -> Iterator[tuple[np.ndarray, np.ndarray]]:
      for conversation in self._read(f"packing: {name.replace('_', ' ')}"):
        if conversation.reason:
          if not wanted:  # both passes meet it
            self._skipped[conversation.reason] += 1
        elif (conversation.draw(self._seed) in held_out) is wanted:
          kept = self._examples(conversation)
          self._counts[f"{name}_conversations"] += bool(kept)
          for example in kept:
            self._counts[f"{name}_tokens"] += len(example.tokens)
            self._counts[f"{name}_squares"] += len(example.tokens)**2
            self._counts[f"{name}_answer_tokens"] += int(example.answers.sum())
            yield example.tokens, np.ones_like(example.answers) if everything else example.answers
    return write_records(pack(examples(), self._data.sequence_length), folder)

  def _examples(self, conversation: Conversation) -> list[Example]:
    """What can be learnt of a conversation; the rest is counted as skipped."""
    if conversation.empty:
      self._skipped[EMPTY_ANSWER] += conversation.empty
    try:
      examples = self._chat.examples(conversation.messages, conversation.learnt, conversation.tools)
    except NotRendered as error:
      self._skipped[str(error)] += 1
      self._by_the_template.add(str(error))
      return []
    kept = []
    for example in examples:
      # Nothing predicts the first token.
      if not example.answers[1:].any():
        self._skipped[NO_TOKENS] += 1
      elif len(example.tokens) > self._longest:
        self._skipped[f"longer than {self._longest} tokens"] += 1
      else:
        kept.append(example)
    if len(examples) > 1:
      self._counts["conversations_cut_into_answers"] += 1
    return kept

  def _read(self, what: str) -> Iterator[Conversation]:
    """The conversations of all files, with a bar."""
    total = sum(map(size_of, self._files))
    with Bar(total=total, unit="B", unit_scale=True, dynamic_ncols=True, desc=what) as bar:
      for conversation in read_conversations(self._files):
        yield conversation
        bar.update(conversation.size)

  def _nothing(self) -> str:
    """The sentence for files that leave nothing to train on."""
    path, held_out = self._data.path, self._counts["held_out_conversations"]
    if held_out:
      why = f"; skipped: {self._in_words()}" if self._skipped else ""
      return (f"data.held_out = {self._data.held_out} takes all {held_out} conversations of {path} that can be used "
              f"(copies of one count as one{why}), and none is left to train on: set it to 0, or add conversations")
    if not self._skipped:
      return f"{path} has no conversation to train on: it is empty"
    wanted = ('every line must be {"messages": [{"role": ..., "content": ...}, ...]} with an assistant turn'
              if self._skipped.keys() - self._by_the_template else
              f"take a model whose chat template knows this, or put such a template into the HF directory of "
              f"{self._model.name} as chat_template.jinja")
    return f"{path} has no conversation to train on (skipped: {self._in_words()}): {wanted}"

  def _in_words(self) -> str:
    return in_words(self._skipped)


def in_words(skipped: dict[str, int]) -> str:
  """Counts by reason, as a person reads them."""
  return ", ".join(f"{reason} ({count})" for reason, count in sorted(skipped.items()))


def log_counts(counts: dict, config: config_lib.FineTuning) -> None:
  """What was made of the files."""
  training = config.training.as_training(counts["sequences"])
  epochs = training.steps_per_round * training.batch_size / counts["sequences"]
  log.info("%d conversations with %d tokens, %d of them the assistant's, in %d sequences of %d (%.1f%% filled); "
           "%d conversations held out; %d steps, %.2f epochs%s", counts["trained_conversations"],
           counts["trained_tokens"], counts["trained_answer_tokens"], counts["sequences"],
           config.data.sequence_length, 100 * counts["filled"], counts.get("held_out_conversations", 0),
           training.steps_per_round, epochs, f"; skipped: {in_words(counts['skipped'])}" if counts["skipped"] else "")
  if cut := counts.get("conversations_cut_into_answers"):
    log.info("%d conversations are an example for each answer: the chat template shows earlier answers otherwise than "
             "the last one", cut)
