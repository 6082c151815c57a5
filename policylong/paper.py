"""Every field of a config, with what it means: the paper's setting, Qwen2.5-3B from 32K to 131,072 tokens.

A config file starts from it and changes what differs, as those in configs/ do; docs/configs.md shows how. What any of
them gives, with these comments: python -m policylong.main --config=FILE.py --print_config

Values marked P are PolicyLong's own (arXiv 2604.07809), E are EntropyLong's (arXiv 2510.02330), which the
group's later paper builds on, D are decisions of this project where no source says.
"""

import dataclasses

from ml_collections import ConfigDict

from policylong.config import Recipe, optional


def config() -> ConfigDict:
  """A run: 4 rounds of 1B tokens, on a slice of 64 devices."""
  return ConfigDict({
      # Every random choice follows from it.
      "seed": 0,
      # Rounds of screening, synthesis and training (P).
      "rounds": 4,
      # Rounds of training that the policy which screens may lack: 0, the newest one screens; 1, the one before; as many
      # as there are rounds, the base model.
      "max_staleness": 0,
      # How sequences are made: policylong; entropylong (one round); nextlong, quest, knn, iclm, standard, utk, prolong,
      # which do not ask the policy; given: corpus.sources hold token sequences (array_record, parquet, mds).
      "method": "policylong",
      "method_options": {
          # How nextlong, knn and iclm search: embeddings (the retrieval group, their papers' way) or bm25.
          "search": "embeddings",
          # NExtLong: chunks behind each meta-chunk; None: as many as its formula says for the sequence's length.
          "nextlong_k": optional(),
          # NExtLong: where a meta-chunk stands among its chunks: head (the paper's best), tail or random.
          "nextlong_position": "head",
          # Quest: RAKE keywords that score less are none (paper: 3).
          "quest_least_score": 3.0,
          # Quest: share of the keywords, those with the fewest documents, that is oversampled (paper: 0.1 to 0.3).
          "quest_split_ratio": 0.2,
          # UtK: share of the sequences that is knotted (paper: 0.3 or 0.8).
          "utk_share": 0.3,
          # ProLong: share of the sequences that comes from documents of at least sequence_length tokens (paper: 0.6).
          "prolong_long_share": 0.6,
          # Given: column of the sequences' document boundaries, for document_masking (ProLong: indices); "": none.
          "given_boundaries": "",
      },
      "model": {
          # An HF directory (config.json, safetensors, tokenizer), a GGUF file, or hf://ORG/NAME[@REVISION], which is
          # fetched from the hub; fine-tuning also starts from a run's working directory (its newest
          # checkpoint) or DIR/checkpoints/STEP.
          # What its tokenizer begins a text with (a Llama's BOS) stands in front of every row that is scored, screened
          # or trained on; sequence_length counts it.
          "path": "models/Qwen2.5-3B",
          # Expected sha256 of the weight file of an HF directory or GGUF file; "" does not check.
          "sha256": "",
          # RoPE theta for the longer context; None keeps the model's own 1e6 (D: unknown for Qwen2.5; E has 2e8
          # for Llama-3-8B).
          "rope_theta": optional(),
          # YaRN factor over the model's own context length; None for no YaRN.
          "yarn_factor": optional(),
          # Weights and matmul inputs of screening; logits and reductions are always float32.
          "scoring_dtype": "bfloat16",
      },
      "corpus": {
          # Where documents come from (E: 229M documents, 644M chunks). kind: jsonl or text (files, compressed or not),
          # parquet, mds, tfds, or hub (path hf://ORG/NAME[:SUBSET][@REVISION], streamed); the fields of a record that
          # hold id and text ("a.b": the field b of a); split is for tfds and hub. Of method given: text_field holds
          # token ids.
          "sources": (
              {"name": "fineweb_edu", "kind": "parquet", "path": "corpus/fineweb-edu/*.parquet", "id_field": "id",
               "text_field": "text", "split": ""},
              {"name": "cosmopedia_v2", "kind": "parquet", "path": "corpus/cosmopedia-v2/*.parquet", "id_field": "",
               "text_field": "text", "split": ""},
          ),
          # Sources that give root documents; () means all.
          "root_sources": (),
          # Characters of whole paragraphs in a chunk, the retrieval unit (NExtLong).
          "chunk_chars": 2048,
          # Where the chunked corpus and its index are kept; later rounds and runs use them again.
          "cache_dir": "corpus/cache",
          # Where python -m policylong.prepare puts the corpus that it makes of these sources (cleaned, without
          # duplicates and benchmarks), which is then read in their place; None: the sources are read as they are.
          "prepared": optional(),
      },
      "retrieval": {
          # D (E used jina-embeddings-v3, whose licence is non-commercial): minilm (all-MiniLM-L6-v2), qwen3
          # (Qwen3-Embedding) or hashed (n-grams, for smoke tests).
          "embedder": "qwen3",
          # Directory of the embedder's weights and tokenizer, or hf://ORG/NAME[@REVISION].
          "embedder_path": "models/Qwen3-Embedding-0.6B",
          # Expected sha256 of its weight file; "" does not check.
          "embedder_sha256": "",
          # Longer texts are cut to so many tokens.
          "embedder_max_tokens": 1024,
          # Texts of that length that a device embeds at once.
          "embedder_batch": 256,
          # What a query asks for; used by qwen3 only.
          "query_instruction": "Given a passage, retrieve passages that help to predict how it goes on",
          # Numbers of a vector that are kept, the first ones, scaled to length 1 again; None: all. For qwen3, which is
          # trained so (32 or more of 1024), and hashed; half of them halve the index.
          "dim": optional(),
          # scann or exact.
          "index": "scann",
          # ScaNN partitions; None: about sqrt(chunks) from 20,000 chunks on, brute force below.
          "leaves": optional(),
          # ScaNN searches as many leaves as recall@10 against exact search needs on real queries.
          "target_recall": 0.95,
          # Memory that building a piece of ScaNN's index may take at its peak, in GiB: a larger corpus has several
          # pieces, built one after the other, searched as one and dealt out to the processes (docs/retrieval.md).
          "piece_gib": 16.0,
      },
      "screening": {
          # Root documents that a round may screen, none twice (E: 100K in all); it ends when its sequences are filled.
          "roots_per_round": 25_000,
          # A root is at most so many tokens (P: root and candidate are about 2K tokens together); of a longer
          # document one window is read.
          "root_tokens": 1536,
          # Shorter documents are no roots.
          "min_root_tokens": 128,
          # Tokens at the start of a root that are never anchors: they have too little left context.
          "skip_tokens": 16,
          # Anchor: entropy > mean + alpha * std of its root (E).
          "alpha": 2.0,
          # Of more anchors in a root the most uncertain ones are kept.
          "max_anchors_per_root": 64,
          # (E) The query is the text of tokens [t - w, t + w) around an anchor t.
          "query_window": 16,
          # Chunks retrieved for an anchor, cosine (E).
          "top_k": 32,
          # A chunk that shares so long a run of tokens with a query window is a near-copy, never a candidate.
          "near_copy_ngram": 13,
          # Random chunks verified for each root, for comparison; never used as context.
          "control_chunks": 4,
          # A context is accepted if it lowers the entropy by more than this share (E). None: from control.
          "epsilon": optional(0.4),
          # Each round, the smallest epsilon at which at most this share of random contexts passes.
          "epsilon_from_control": optional(),
          # Accept only gains that exceed the best control gain at the anchor by so much; None: not asked
          # (paper).
          "control_margin": optional(),
          # What a context must show: entropy, the policy becomes surer (P); entropy_and_loss, and the token that
          # stands there likelier.
          "evidence": "entropy",
          # By so many nats its loss must fall, for entropy_and_loss; None: from control.
          "loss_margin": optional(),
          # Each round, the smallest margin that at most this share of random contexts passes.
          "loss_margin_from_control": optional(),
          # Tokens scored for each token that the round trains on, at most: no row costs more than it is worth at that
          # price. None: every row of as many roots as it takes (P). Eight is a quarter of a run's hours (D,
          # docs/pods.md).
          "budget": optional(8.0),
          # With a budget, share of the roots whose rows are all scored: they tell what the budget missed.
          "probe_share": 0.05,
          # Hard negatives: positives (similar to the verified positives, P), rejected (refused candidates),
          # both, or none.
          "negatives": "positives",
          # A chunk is cut to so many tokens.
          "max_chunk_tokens": 768,
          # Scoring rows are padded to multiples of it.
          "bucket_multiple": 128,
          # Padded tokens that a device scores at once.
          "tokens_per_batch": 32_768,
          # Roots that go through scan, retrieval and verification together; a restart repeats at most one such
          # shard.
          "roots_per_shard": 64,
      },
      "synthesis": {
          # Tokens of a training sequence, exactly (P).
          "sequence_length": 131_072,
          # Text between a context and what follows it.
          "separator": "\n\n",
          # Negatives that each positive brings into a sequence at most; None: as many as fit. With as many, reading
          # among many keys and at short lengths came out worse (experiments/small_study, size negatives). At
          # EntropyLong's 46 dependencies a root a 128K sequence holds two roots with one; its authors had three (D).
          "negatives_per_positive": optional(1),
      },
      "training": {
          # Optimizer steps a round: 238 x 32 x 131,072 = 1.0B tokens (P).
          "steps_per_round": 238,
          # Sequences a step (E: 4M tokens; 2M in fine-tuning).
          "batch_size": 32,
          # Microbatches that a step adds up.
          "accumulation": 1,
          # Learning rate after warm-up (E).
          "peak_learning_rate": 4e-5,
          # Share of the schedule that warms up; then cosine to 0 (E; D in fine-tuning).
          "warmup_fraction": 0.2,
          # D. run: one schedule over all rounds, optimizer state carried on; round: both restart each round.
          "schedule": "run",
          # True: no document of a sequence sees another (ProLong's way); False: full causal attention (P).
          "document_masking": False,
          # LongCE: tokens that the long context makes likelier weigh more in the loss (P: no).
          "longce": False,
          # LongFilter: train on this share of a round's sequences, those that need their length most; None: on all (P).
          "longfilter_share": optional(),
          # What both compare the whole context with, in tokens (LongCE: 4096).
          "short_window": 4096,
          # AdamW: how much of the mean gradient is kept at a step (E).
          "adam_b1": 0.9,
          # And of the mean square of gradients (E).
          "adam_b2": 0.95,
          # Decay of weight matrices; norms and biases have none (E: 0.1).
          "weight_decay": 0.1,
          # Gradients are scaled down to this global norm (E).
          "clip_norm": 1.0,
          # Weights and activations in the forward and backward pass; the master copy is float32.
          "compute_dtype": "bfloat16",
          # What of a layer is computed again in the backward pass: "none" (everything is kept), "all_but_products"
          # (the results of matrix products and of attention are kept), "all_but_attention" (only what was attended to
          # is) or "full" (only the layer's input is).
          "remat": "all_but_attention",
          # How attention reaches the tokens of other devices of mesh.context: "gather" or "ring".
          "context_attention": "gather",
          # Steps between checkpoints; the end of a round, or of fine-tuning, is always one.
          "checkpoint_every": 50,
          # Newest checkpoints kept.
          "keep_checkpoints": 2,
      },
      # Benchmarks of the base model and of the policy after each round.
      "eval": {
          # ruler (13 tasks and their mean), ruler/TASK, longppl, position_loss, lm-eval's tasks; () for none.
          "tasks": ("ruler",),
          # Lengths of prompts and documents, in tokens.
          "lengths": (8192, 16_384, 32_768, 65_536, 131_072),
          # Prompts of a task, or documents, at each length.
          "samples": 20,
          # RULER as NVIDIA's package runs it ("nvidia") or as HELMET does and the papers compared with ("helmet").
          "protocol": "helmet",
          # Held-out text for longppl and position_loss, in the form of corpus.sources; path "" for none.
          "documents": {"name": "held-out", "kind": "jsonl", "path": "", "id_field": "id", "text_field": "text",
                        "split": ""},
          # LongPPL's short context, in tokens (LongPPL's own: 4096).
          "short_window": 4096,
          # Where RULER's package and prompt sets are kept; fetched when first needed.
          "ruler_dir": "material/ruler",
      },
      # Devices along each axis; -1, on one axis at most: all that are left.
      "mesh": {
          # Splits a step's sequences, and no weights; between the slices of several it is the only axis.
          "data": 1,
          # Splits a step's sequences, and the weights.
          "fsdp": 16,
          # Splits the tokens of each sequence, and the weights.
          "context": 4,
          # Splits heads, the MLP's columns and the vocabulary.
          "tensor": 1,
          # So many CPU devices (of all processes together) in the place of real ones; 0: the real ones.
          "simulated_devices": 0,
      },
      "report": {
          # Roots shown in full on the page, for each round.
          "roots": 4,
          # Anchors shown for each of them.
          "anchors_per_root": 6,
      },
      # Project on Weights & Biases that gets the numbers too; None: TensorBoard and metrics.jsonl alone.
      "wandb_project": optional(),
  })


def tuning_config() -> ConfigDict:
  """Fine-tuning on conversations: EntropyLong's, and of a run's fields those that it shares."""
  run = config()
  tuning = ConfigDict({
      "seed": run.seed,
      "model": {"path": run.model.path, "sha256": run.model.sha256},
      "data": {
          # Chat JSONL, one {"messages": [{"role", "content"}, ...]} a line: a file or a glob; docs/sft.md has more.
          "path": "chats.jsonl",
          # Tokens of a packed sequence; a longer conversation is skipped and counted.
          "sequence_length": 131_072,
          # What is learnt: answers (the assistant's tokens only) or everything.
          "loss_on": "answers",
          # Share of conversations that is not trained on but judged before and after; 0: none (D).
          "held_out": 0.001,
      },
      "training": {
          # Optimizer steps (E); None: as many as make `epochs`.
          "steps": optional(250),
          # Passes over the packed sequences; None: `steps` says it.
          "epochs": optional(),
          **{field.name: run.training[field.name] for field in dataclasses.fields(Recipe)},
      },
      "mesh": run.mesh.to_dict(),
      "wandb_project": optional(),
  })
  tuning.training.update({"batch_size": 16, "peak_learning_rate": 2e-5, "warmup_fraction": 0.1})
  return tuning


def on_slice(slices: dict[str, dict], slice_: str) -> ConfigDict:
  """The run laid over one of the slices that a config is made for.

  Args:
    slices: slice -> how a step lies on it, as in configs/qwen3b_128k.py.
    slice_: one of them.

  Raises:
    ValueError: it is none of them.
  """
  if slice_ not in slices:
    raise ValueError(f"the config knows no slice {slice_!r}: use one of {', '.join(slices)}")
  run, layout = config(), slices[slice_]
  run.mesh.update({"fsdp": layout["fsdp"], "context": layout["context"]})
  run.training.update({"accumulation": layout["accumulation"], "remat": layout["remat"]})
  return run
