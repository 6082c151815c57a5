"""Fine-tuning on conversations, as needed before LongBench-v2; by default SmolLM2-135M on two CPU cores.

  python -m policylong.sft --config=configs/sft.py --workdir=runs/sft --config.data.path=chats.jsonl

The published recipe (EntropyLong: UltraChat at 2e-5, 250 steps of 2M tokens) is the argument `:paper`; it wants
--config.model.path of a PolicyLong run and --config.data.path, and a mesh of accelerators. Each field is explained in
policylong/paper.py.
"""

from ml_collections import ConfigDict

from policylong import paper


def get_config(size: str = "small") -> ConfigDict:
  """The small one, or "paper"."""
  if size not in ("small", "paper"):
    raise ValueError(f"the config knows no size {size!r}: use small or paper")
  config = paper.tuning_config()
  # What `make material` fetches.
  config.model.path = "material/smollm2.gguf"
  if size == "small":
    # Short sequences, for two cores; and of a few hundred conversations a thousandth is none.
    config.data.update({"sequence_length": 1024, "held_out": 0.05})
    # As many steps as there are conversations for; a sequence at a time, for memory.
    config.training.update({"steps": None, "epochs": 2.0, "batch_size": 4, "accumulation": 4, "checkpoint_every": 20})
    # One device.
    config.mesh.update({"fsdp": 1, "context": 1})
  return config
