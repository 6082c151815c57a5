"""From a ConfigDict at the door to frozen, validated dataclasses inside.

A config file gives every field: those of paper.py, where each has a value and a comment above it, once, but for what
the file changes. No default lives here or anywhere else. What a field must satisfy stands here, and every refusal names
the field, the value found and the value wanted.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable

from ml_collections.config_dict import FieldReference

from policylong import paths
from policylong.errors import UserError
from policylong.padding import bucket


class ConfigError(UserError):
  """A field is missing, unknown, of the wrong type, or contradicts another."""


# The largest seed: JAX takes 64 bits with a sign.
_LARGEST_SEED = 2**63 - 1
# The largest float32 below 1: AdamW divides by 1 less what it keeps of a mean.
_BELOW_ONE = 1 - 2**-24
# Kinds of sources that hold documents, and those that can hold token sequences.
DOCUMENT_KINDS = ("jsonl", "parquet", "text", "mds", "tfds", "hub")
SEQUENCE_KINDS = ("parquet", "mds", "array_record")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where documents come from. `path` is a file, a glob, a folder, a TFDS builder name, or hf://ORG/NAME."""
  name: str
  kind: str  # jsonl | parquet | text | mds | tfds | hub, or of token sequences: parquet | mds | array_record
  path: paths.Path
  id_field: str
  text_field: str
  split: str

  def __post_init__(self):
    _one_of(f"kind of the source {self.name!r}", self.kind, (*DOCUMENT_KINDS, "array_record"))
    if (self.kind == "hub") is not self.path.startswith("hf://"):
      raise ConfigError(f"the source {self.name!r} is of kind {self.kind} and its path is {self.path}: "
                        "hf://ORG/NAME is the path of kind hub, and of no other")


@dataclasses.dataclass(frozen=True)
class Model:
  """The base model: an HF directory, a GGUF file, or hf://ORG/NAME on the hub."""
  path: paths.Path
  sha256: str
  rope_theta: float | None
  yarn_factor: float | None
  scoring_dtype: str

  def __post_init__(self):
    _one_of("model.scoring_dtype", self.scoring_dtype, ("float32", "bfloat16"))
    if self.rope_theta is not None:
      _above("model.rope_theta", self.rope_theta, 1)  # with a base of 1 every pair turns alike
    if self.yarn_factor is not None:
      _at_least("model.yarn_factor", self.yarn_factor, 1)


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What is read, how it is cut into chunks, which sources give root documents."""
  sources: tuple[Source, ...]
  root_sources: tuple[str, ...]
  chunk_chars: int
  cache_dir: paths.Path
  prepared: paths.Path | None

  def __post_init__(self):
    if not self.sources:
      raise ConfigError("corpus.sources is empty: name at least one source of documents")
    names = [source.name for source in self.sources]
    if len(set(names)) < len(names):
      raise ConfigError(f"corpus.sources has a name twice: {names}")
    for name in self.root_sources:
      _one_of("corpus.root_sources", name, tuple(names))
    _at_least("corpus.chunk_chars", self.chunk_chars, 1)


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """The embedder and the index over the corpus's chunks; both are frozen for the whole run."""
  embedder: str
  embedder_path: paths.Path
  embedder_sha256: str
  embedder_max_tokens: int
  embedder_batch: int
  query_instruction: str
  dim: int | None
  index: str
  leaves: int | None
  target_recall: float
  piece_gib: float

  def __post_init__(self):
    _one_of("retrieval.embedder", self.embedder, ("minilm", "qwen3", "hashed"))
    if self.dim is not None:
      _at_least("retrieval.dim", self.dim, 1)
      if self.embedder == "minilm":
        raise ConfigError(f"retrieval.dim is {self.dim}, but retrieval.embedder 'minilm' was not trained so that the "
                          "first numbers of a vector mean anything alone: set it to None, or take 'qwen3'")
    _one_of("retrieval.index", self.index, ("exact", "scann"))
    _at_least("retrieval.embedder_batch", self.embedder_batch, 1)
    _at_least("retrieval.embedder_max_tokens", self.embedder_max_tokens, 8)
    if self.leaves is not None:
      _at_least("retrieval.leaves", self.leaves, 1)
    _between("retrieval.target_recall", self.target_recall, 0.5, 1.0)
    _above("retrieval.piece_gib", self.piece_gib, 0)


@dataclasses.dataclass(frozen=True)
class Screening:
  """What the policy is asked about the corpus each round."""
  roots_per_round: int
  root_tokens: int
  min_root_tokens: int
  skip_tokens: int
  alpha: float
  max_anchors_per_root: int
  query_window: int
  top_k: int
  near_copy_ngram: int
  control_chunks: int
  epsilon: float | None
  epsilon_from_control: float | None
  control_margin: float | None
  evidence: str
  loss_margin: float | None
  loss_margin_from_control: float | None
  budget: float | None
  probe_share: float
  negatives: str
  max_chunk_tokens: int
  bucket_multiple: int
  tokens_per_batch: int
  roots_per_shard: int

  def __post_init__(self):
    for name in ("roots_per_round", "max_anchors_per_root", "query_window", "top_k", "near_copy_ngram",
                 "max_chunk_tokens", "bucket_multiple", "roots_per_shard", "skip_tokens"):
      _at_least(f"screening.{name}", getattr(self, name), 1)
    _at_least("screening.control_chunks", self.control_chunks, 0)
    _between("screening.min_root_tokens", self.min_root_tokens, 2, self.root_tokens)
    if self.skip_tokens >= self.min_root_tokens:
      raise ConfigError(f"screening.skip_tokens is {self.skip_tokens} and leaves nothing of a root of "
                        f"screening.min_root_tokens = {self.min_root_tokens} tokens: make it smaller")
    if not math.isfinite(self.alpha):
      raise ConfigError(f"screening.alpha is {self.alpha}; it must be a finite number of standard deviations")
    if (self.epsilon is None) == (self.epsilon_from_control is None):
      raise ConfigError(f"screening.epsilon is {self.epsilon} and screening.epsilon_from_control is "
                        f"{self.epsilon_from_control}: set exactly one of them, the other to None")
    if self.epsilon is not None:
      _between("screening.epsilon", self.epsilon, 0.0, 1.0)
      if self.epsilon == 1.0:
        raise ConfigError("screening.epsilon is 1.0; it must be below 1: no context takes more than all of the entropy")
    if self.epsilon_from_control is not None:
      _between("screening.epsilon_from_control", self.epsilon_from_control, 0.0, 1.0)
      if not self.control_chunks:
        raise ConfigError("screening.epsilon_from_control needs a control, but screening.control_chunks "
                          "is 0: set it to 1 or more")
    if self.control_margin is not None:
      if not math.isfinite(self.control_margin):
        raise ConfigError(f"screening.control_margin is {self.control_margin}; it must be finite or None")
      if not self.control_chunks:
        raise ConfigError("screening.control_margin needs a control, but screening.control_chunks is 0")
    self._check_evidence()
    _one_of("screening.negatives", self.negatives, ("positives", "rejected", "both", "none"))
    longest = self.max_chunk_tokens + self.root_tokens
    if self.tokens_per_batch < (padded := bucket(longest, self.bucket_multiple)):
      raise ConfigError(
          f"screening.tokens_per_batch is {self.tokens_per_batch}, too small for one row of max_chunk_tokens + "
          f"root_tokens = {longest} tokens, padded to {padded}")

  def _check_evidence(self):
    _one_of("screening.evidence", self.evidence, ("entropy", "entropy_and_loss"))
    margins = (self.loss_margin, self.loss_margin_from_control)
    if self.evidence == "entropy_and_loss" and margins.count(None) != 1:
      raise ConfigError(f"screening.loss_margin is {self.loss_margin} and screening.loss_margin_from_control is "
                        f"{self.loss_margin_from_control}: with screening.evidence 'entropy_and_loss' set exactly one "
                        "of them, the other to None")
    if self.loss_margin is not None:
      _at_least("screening.loss_margin", self.loss_margin, 0.0)
    if self.loss_margin_from_control is not None:
      _between("screening.loss_margin_from_control", self.loss_margin_from_control, 0.0, 1.0)
      if self.evidence == "entropy_and_loss" and not self.control_chunks:
        raise ConfigError("screening.loss_margin_from_control needs a control, but screening.control_chunks is 0: set "
                          "it to 1 or more")
    _between("screening.probe_share", self.probe_share, 0.0, 1.0)
    if self.budget is not None and not (self.budget > 0 and math.isfinite(self.budget)):
      raise ConfigError(f"screening.budget is {self.budget}; it must be above 0, or None for all rows")


@dataclasses.dataclass(frozen=True)
class MethodOptions:
  """What single methods can be told; each field is read by the method that it is named after, `search` by several."""
  search: str
  nextlong_k: int | None
  nextlong_position: str
  quest_least_score: float
  quest_split_ratio: float
  utk_share: float
  prolong_long_share: float
  given_boundaries: str

  def __post_init__(self):
    _one_of("method_options.search", self.search, ("embeddings", "bm25"))
    if self.nextlong_k is not None:
      _at_least("method_options.nextlong_k", self.nextlong_k, 1)
    _one_of("method_options.nextlong_position", self.nextlong_position, ("head", "tail", "random"))
    _at_least("method_options.quest_least_score", self.quest_least_score, 0.0)
    for name in ("quest_split_ratio", "utk_share", "prolong_long_share"):
      _between(f"method_options.{name}", getattr(self, name), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Synthesis:
  """What a training sequence is."""
  sequence_length: int
  separator: str
  negatives_per_positive: int | None

  def __post_init__(self):
    if self.negatives_per_positive is not None:
      _at_least("synthesis.negatives_per_positive", self.negatives_per_positive, 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a step is made, whatever it is made of; paper.py has the published values."""
  batch_size: int
  accumulation: int
  peak_learning_rate: float
  warmup_fraction: float
  adam_b1: float
  adam_b2: float
  weight_decay: float
  clip_norm: float
  compute_dtype: str
  remat: str
  context_attention: str
  checkpoint_every: int
  keep_checkpoints: int

  def __post_init__(self):
    for name in ("batch_size", "accumulation", "checkpoint_every", "keep_checkpoints"):
      _at_least(f"training.{name}", getattr(self, name), 1)
    if self.batch_size % self.accumulation:
      raise ConfigError(f"training.batch_size is {self.batch_size}, not divisible by "
                        f"training.accumulation = {self.accumulation}")
    _one_of("training.compute_dtype", self.compute_dtype, ("float32", "bfloat16"))
    _one_of("training.remat", self.remat, ("none", "all_but_products", "all_but_attention", "full"))
    _one_of("training.context_attention", self.context_attention, ("gather", "ring"))
    _between("training.warmup_fraction", self.warmup_fraction, 0.0, 1.0)
    for name in ("adam_b1", "adam_b2"):
      _between(f"training.{name}", getattr(self, name), 0.0, _BELOW_ONE)
    _at_least("training.weight_decay", self.weight_decay, 0.0)
    for name in ("peak_learning_rate", "clip_norm"):
      _above(f"training.{name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class Eval:
  """What the base model and the policy after each round are asked."""
  tasks: tuple[str, ...]
  lengths: tuple[int, ...]
  samples: int
  protocol: str
  documents: Source
  short_window: int
  ruler_dir: paths.Path

  def __post_init__(self):
    _one_of("kind of eval.documents", self.documents.kind, DOCUMENT_KINDS)
    _one_of("eval.protocol", self.protocol, ("nvidia", "helmet"))
    _at_least("eval.samples", self.samples, 1)
    _at_least("eval.short_window", self.short_window, 1)
    if self.tasks and not self.lengths:
      raise ConfigError(f"eval.lengths is empty, and eval.tasks is {self.tasks}: give lengths in tokens, or no tasks")
    for task in self.tasks:
      if task in ("longppl", "position_loss") and not self.documents.path:
        raise ConfigError(f"eval.tasks has {task}, and eval.documents.path is empty: name held-out text")


@dataclasses.dataclass(frozen=True)
class Training(Recipe):
  """Training in rounds."""
  steps_per_round: int
  schedule: str
  document_masking: bool
  longce: bool
  longfilter_share: float | None
  short_window: int

  def __post_init__(self):
    _at_least("training.steps_per_round", self.steps_per_round, 1)
    _one_of("training.schedule", self.schedule, ("run", "round"))
    _at_least("training.short_window", self.short_window, 1)
    if self.longfilter_share is not None and not 0 < self.longfilter_share < 1:
      raise ConfigError(f"training.longfilter_share is {self.longfilter_share}; it must be between 0 and 1, or None")
    if self.document_masking and self.needs_gaps:
      raise ConfigError(f"training.document_masking is True, training.longce is {self.longce} and training."
                        f"longfilter_share is {self.longfilter_share}: what a token gains from the whole sequence is "
                        "nothing to documents that do not see each other; set it to False, or these to False and None")
    super().__post_init__()

  @property
  def needs_gaps(self) -> bool:
    """Whether the policy must first say what each token of its sequences owes to their length (`long_gap`)."""
    return self.longce or self.longfilter_share is not None

  @property
  def record_rows(self) -> int:
    """Rows of L numbers in a record of a training sequence: 1 of a plain one, 2 of a weighed one, 3 of a packed one."""
    return 3 if self.document_masking else 2 if self.longce else 1


@dataclasses.dataclass(frozen=True)
class Tuning(Recipe):
  """Fine-tuning: so many steps, or so many passes over the data."""
  steps: int | None
  epochs: float | None

  def __post_init__(self):
    if (self.steps is None) == (self.epochs is None):
      raise ConfigError(f"training.steps is {self.steps} and training.epochs is {self.epochs}: set exactly one of "
                        "them, the other to None")
    if self.steps is not None:
      _at_least("training.steps", self.steps, 1)
    else:
      _above("training.epochs", self.epochs, 0)
    super().__post_init__()

  def as_training(self, sequences: int) -> Training:
    """One round of training on so many sequences, in which no conversation sees another."""
    steps = self.steps or max(1, round(self.epochs * sequences / self.batch_size))
    shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
    return Training(**shared, steps_per_round=steps, schedule="run", document_masking=True, longce=False,
                    longfilter_share=None, short_window=1)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; -1 for at most one axis: all devices that are left.

  Only the number of simulated devices may be left out, and only in code: who makes a mesh of devices that
  are there has none to simulate. A config file gives it.
  """
  data: int
  fsdp: int
  context: int
  tensor: int
  simulated_devices: int = 0

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.context, self.tensor)
    if sizes.count(-1) > 1:
      raise ConfigError(f"mesh has -1 on more than one axis (data, fsdp, context, tensor = {sizes}); use it once")
    for name, size in zip(("data", "fsdp", "context", "tensor"), sizes):
      if size != -1:
        _at_least(f"mesh.{name}", size, 1)
    _at_least("mesh.simulated_devices", self.simulated_devices, 0)


@dataclasses.dataclass(frozen=True)
class Report:
  """What the page shows in full."""
  roots: int
  anchors_per_root: int

  def __post_init__(self):
    _at_least("report.roots", self.roots, 0)
    _at_least("report.anchors_per_root", self.anchors_per_root, 1)


# How a round's sequences are made: by asking the policy, and without it; or they exist already.
POLICY_METHODS = ("policylong", "entropylong")
CORPUS_METHODS = (*POLICY_METHODS, "nextlong", "quest", "knn", "iclm", "standard", "utk", "prolong")
METHODS = (*CORPUS_METHODS, "given")


@dataclasses.dataclass(frozen=True)
class Config:
  """One run of PolicyLong, or of a method that it is compared with."""
  seed: int
  rounds: int
  max_staleness: int
  method: str
  method_options: MethodOptions
  model: Model
  corpus: Corpus
  retrieval: Retrieval
  screening: Screening
  synthesis: Synthesis
  training: Training
  eval: Eval
  mesh: Mesh
  report: Report
  wandb_project: str | None

  def __post_init__(self):
    _at_least("rounds", self.rounds, 1)
    _between("seed", self.seed, 0, _LARGEST_SEED)
    _one_of("method", self.method, METHODS)
    _at_least("max_staleness", self.max_staleness, 0)
    if self.method == "entropylong" and self.rounds > 1:
      raise ConfigError(f"method is 'entropylong' and rounds is {self.rounds}: it screens once, with the base model; "
                        "set rounds to 1, and roots_per_round and steps_per_round to those of all rounds together")
    if self.method == "utk" and self.training.document_masking:
      raise ConfigError("method is 'utk' and training.document_masking is True: it puts a document's pieces between "
                        "those of others, and masked they could not see each other; set it to False")
    what, kinds = ("token sequences", SEQUENCE_KINDS) if self.method == "given" else ("documents", DOCUMENT_KINDS)
    for source in self.corpus.sources:
      if source.kind not in kinds:
        raise ConfigError(f"method is {self.method!r} and the source {source.name!r} is of kind {source.kind}: it "
                          f"reads {what}, of kind {', '.join(kinds)}")
    if self.method == "given" and self.corpus.prepared is not None:
      raise ConfigError(f"method is 'given' and corpus.prepared is {self.corpus.prepared}: prepared corpora hold "
                        "documents, and it reads token sequences; set it to None")
    length, root = self.synthesis.sequence_length, self.screening.root_tokens
    if length <= root:
      raise ConfigError(f"synthesis.sequence_length is {length}: it must be more than "
                        f"screening.root_tokens = {root}, to leave room for contexts")
    if self.training.needs_gaps and self.training.short_window >= length:
      raise ConfigError(f"training.short_window is {self.training.short_window}, and synthesis.sequence_length = "
                        f"{length} tokens are not more: make it smaller")
    if self.screening.budget is not None:
      trained = self.training.steps_per_round * self.training.batch_size * length
      least = 3 * root + self.screening.max_chunk_tokens  # its scan, the root alone, and one row
      if self.screening.budget * trained < least:
        raise ConfigError(f"screening.budget is {self.screening.budget} tokens for each of the {trained:,} that a "
                          f"round trains on, {self.screening.budget * trained:,.0f} in all: a single root of "
                          f"screening.root_tokens = {root} can take {least:,}")
    _check_layout("synthesis.sequence_length", length, self.training, self.mesh)


@dataclasses.dataclass(frozen=True)
class StartModel:
  """What is fine-tuned: an HF directory, a GGUF file, a run's working directory or one of its checkpoints."""
  path: paths.Path
  sha256: str


@dataclasses.dataclass(frozen=True)
class Conversations:
  """What it is fine-tuned on: chat JSONL, packed into sequences."""
  path: paths.Path
  sequence_length: int
  loss_on: str
  held_out: float

  def __post_init__(self):
    _at_least("data.sequence_length", self.sequence_length, 2)
    _one_of("data.loss_on", self.loss_on, ("answers", "everything"))
    _between("data.held_out", self.held_out, 0.0, 0.5)


@dataclasses.dataclass(frozen=True)
class FineTuning:
  """One run of supervised fine-tuning."""
  seed: int
  model: StartModel
  data: Conversations
  training: Tuning
  mesh: Mesh
  wandb_project: str | None

  def __post_init__(self):
    _between("seed", self.seed, 0, _LARGEST_SEED)
    _check_layout("data.sequence_length", self.data.sequence_length, self.training, self.mesh)


def _check_layout(name: str, length: int, training: Recipe, mesh: Mesh) -> None:
  """Whether a step's sequences, each of the length that the field `name` says, can lie on the mesh."""
  context = mesh.context
  if context > 1 and length % (2 * context):
    raise ConfigError(f"{name} is {length}, not divisible by {2 * context}: at mesh.context = {context} each device "
                      "takes two equal chunks of it")
  if context == 1 and training.context_attention == "ring":
    raise ConfigError("training.context_attention is 'ring' but mesh.context is 1: use 'gather', or a mesh.context "
                      "of 2 or more")
  rows = mesh.data * mesh.fsdp
  micro = training.batch_size // training.accumulation
  if rows > 0 and micro % rows:
    raise ConfigError(f"training.batch_size / accumulation is {micro} sequences, not divisible by "
                      f"mesh.data * mesh.fsdp = {rows}")


def optional(value: float | None = None) -> FieldReference:
  """A number or a name in a config file that may be None instead; the command line can set it to either."""
  return FieldReference(value, field_type=object)


@typing.overload
def parse(values) -> Config: ...
@typing.overload
def parse[Kind](values, kind: type[Kind]) -> Kind: ...
def parse(values, kind=Config):
  """A ConfigDict (or nested dict) as a Config, or as a FineTuning.

  Raises:
    ConfigError: a field is missing, unknown, of the wrong type, or contradicts another.
  """
  if hasattr(values, "to_dict"):
    values = values.to_dict()
  return _build(kind, values, "")


def to_json(config: Config | FineTuning) -> str:
  """The exact config as JSON with sorted keys: what a working directory remembers."""
  return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def with_paths(config: typing.Any, change: Callable[[str], str]) -> typing.Any:
  """A config, or a group of its fields, with `change` made of each of its paths."""
  changed: dict[str, typing.Any] = {}
  for name, hint in typing.get_type_hints(type(config)).items():
    value = getattr(config, name)
    if hint is paths.Path:
      changed[name] = change(value)
    elif dataclasses.is_dataclass(value):
      changed[name] = with_paths(value, change)
    elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
      changed[name] = tuple(with_paths(item, change) for item in value)
  return dataclasses.replace(config, **changed)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
  """Where two config dictionaries differ: lines "field: old -> new"."""
  lines = []
  for key in sorted(set(old) | set(new)):
    a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
    if isinstance(a, dict) and isinstance(b, dict):
      lines += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      lines.append(f"{prefix}{key}: {a} -> {b}")
  return lines


def _build(kind, values, prefix):
  if not isinstance(values, dict):
    raise ConfigError(f"{prefix.rstrip('.') or 'the config'} is {values!r}; it must be a group of fields")
  hints = typing.get_type_hints(kind)
  for name in values:
    if name not in hints:
      close = difflib.get_close_matches(name, hints, n=1)
      raise ConfigError(f"{prefix}{name} is not a config field" + (f"; did you mean {prefix}{close[0]}?" if close else
                        f"; the fields here are {', '.join(sorted(hints))}"))
  for name in hints:
    if name not in values:
      raise ConfigError(f"{prefix}{name} is missing from the config")
  return kind(**{name: _convert(hint, values[name], prefix + name) for name, hint in hints.items()})


def _convert(hint, value, name):
  if dataclasses.is_dataclass(hint):
    return _build(hint, value, name + ".")
  if typing.get_origin(hint) in (types.UnionType, typing.Union):  # the second with a NewType
    return None if value is None else _convert(typing.get_args(hint)[0], value, name)
  if typing.get_origin(hint) is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f"{name} is {value!r}; it must be a list")
    return tuple(_convert(typing.get_args(hint)[0], item, f"{name}[{i}]") for i, item in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is paths.Path:
    return paths.expand(_convert(str, value, name))
  if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
    raise ConfigError(f"{name} is {value!r}; it must be of type {hint.__name__}")
  return value


def _at_least(name, value, low):
  if not low <= value < math.inf:
    raise ConfigError(f"{name} is {value}; it must be {'finite' if value == math.inf else f'at least {low}'}")


def _above(name, value, low):
  if not low < value < math.inf:
    raise ConfigError(f"{name} is {value}; it must be {'finite' if value == math.inf else f'above {low}'}")


def _between(name, value, low, high):
  if not low <= value <= high:
    raise ConfigError(f"{name} is {value}; it must be between {low} and {high}")


def _one_of(name, value, allowed):
  if value not in allowed:
    raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
