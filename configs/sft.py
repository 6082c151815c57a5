"""Fine-tuning on conversations, as needed before LongBench-v2; by default SmolLM2-135M on two CPU cores.

  python -m policylong.sft --config=configs/sft.py --workdir=runs/sft --config.data.path=chats.jsonl

The published recipe (EntropyLong: UltraChat at 2e-5, 250 steps of 2M tokens) is the argument `:paper`; it wants
--config.model.path of a PolicyLong run and --config.data.path, and a mesh of accelerators.
"""

from ml_collections import ConfigDict

from policylong.config import optional


def get_config(size: str = "small") -> ConfigDict:
  """The small one, or "paper"."""
  if size not in ("small", "paper"):
    raise ValueError(f"the config knows no size {size!r}: use small or paper")
  config = small()
  if size == "paper":
    config.data.update({"sequence_length": 131_072, "held_out": 0.001})
    config.training.update({"steps": 250, "epochs": None, "batch_size": 16, "accumulation": 1, "checkpoint_every": 50})
    config.mesh.update({"fsdp": 16, "context": 4})
  return config


def small() -> ConfigDict:
  """Every field."""
  return ConfigDict({
      # Every random choice follows from it.
      "seed": 0,
      "model": {
          # An HF directory, a GGUF file, a run's working directory (its newest checkpoint) or DIR/checkpoints/STEP.
          "path": "material/smollm2.gguf",
          # Expected sha256 of the weight file of an HF directory or GGUF file; "" does not check.
          "sha256": "",
      },
      "data": {
          # Chat JSONL, one {"messages": [{"role", "content"}, ...]} a line: a file or a glob, gzipped or not.
          "path": "chats.jsonl",
          # Tokens of a packed sequence; a longer conversation is skipped and counted.
          "sequence_length": 1024,
          # What is learnt: answers (the assistant's tokens only) or everything.
          "loss_on": "answers",
          # Share of conversations that is not trained on but judged before and after; 0: none.
          "held_out": 0.05,
      },
      "training": {
          # Optimizer steps; None: as many as make `epochs`.
          "steps": optional(),
          # Passes over the packed sequences; None: `steps` says it.
          "epochs": optional(2.0),
          # Sequences a step.
          "batch_size": 4,
          # Microbatches that a step adds up.
          "accumulation": 4,
          # Learning rate after warm-up (EntropyLong's).
          "peak_learning_rate": 2e-5,
          # Share of the schedule that warms up; then cosine to 0.
          "warmup_fraction": 0.1,
          "adam_b1": 0.9,
          "adam_b2": 0.95,
          # Decay of weight matrices; norms and biases have none.
          "weight_decay": 0.1,
          # Gradients are scaled down to this global norm.
          "clip_norm": 1.0,
          # Weights and activations in the forward and backward pass; the master copy is float32.
          "compute_dtype": "bfloat16",
          # What of a layer is computed again in the backward pass: none, all_but_products, all_but_attention or full.
          "remat": "all_but_attention",
          # How attention reaches the tokens of other devices of mesh.context: "gather" or "ring".
          "context_attention": "gather",
          # Steps between checkpoints; the last one is always saved.
          "checkpoint_every": 20,
          # Newest checkpoints kept.
          "keep_checkpoints": 2,
      },
      # Devices along each axis; -1: all that are left. simulated_devices: so many CPU devices (of all processes
      # together) in the place of real ones; 0: the real ones.
      "mesh": {"data": 1, "fsdp": 1, "context": 1, "tensor": 1, "simulated_devices": 0},
  })
