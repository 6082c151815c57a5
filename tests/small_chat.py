"""Conversations, templates and a random two-layer model with SmolLM2's tokenizer, small enough for tests."""

import json
import pathlib

import jax
import numpy as np

from configs import sft

# Written in the shape of Qwen2.5's and Qwen3's: a default system message; and reasoning that is shown in the last
# answer only, so that a conversation's beginning is rendered otherwise than the beginning of a conversation.
QWEN2_SHAPED = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
QWEN3_SHAPED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi"}


def conversation(i: int) -> list[dict[str, str]]:
  """The i-th of endlessly many: always the same ways of asking and answering."""
  rng = np.random.default_rng(i)
  messages = [{"role": "system", "content": "Answer shortly."}] if rng.random() < 0.3 else []
  for _ in range(rng.integers(1, 4)):
    country = str(rng.choice(list(CAPITALS)))
    messages += [{"role": "user", "content": f"Case {i}: the capital of {country}?"},
                 {"role": "assistant", "content": f"It is {CAPITALS[country]}, of course."}]
  return messages


def write_chats(path: pathlib.Path, conversations) -> pathlib.Path:
  """A chat JSONL file of lists of messages; anything else is written as it is."""
  lines = [line if isinstance(line, str) else json.dumps({"messages": line}) for line in conversations]
  path.write_text("\n".join(lines) + "\n")
  return path


def write_model(folder: pathlib.Path, material: pathlib.Path, template: str | None = None) -> pathlib.Path:
  """An HF directory of the random model; `template` takes the place of SmolLM2's."""
  from policylong.model import hf
  from policylong.model.qwen import ModelConfig, init_params
  from policylong.model.tokenizer import load_tokenizer

  tokenizer = load_tokenizer(material / "smollm2.gguf")
  tokenizer.chat_template = tokenizer.chat_template if template is None else template
  model = ModelConfig(family="llama", vocab_size=len(tokenizer), embed_dim=32, mlp_dim=64, num_layers=2, num_heads=4,
                      num_kv_heads=2, head_dim=8, norm_eps=1e-5, rope_theta=1e4, rope_scaling=None, max_positions=512,
                      tied=True)
  hf.export_hf(init_params(model, jax.random.key(0), np.float32), model, tokenizer, folder)
  return folder


def small_tuning(model: pathlib.Path, data: pathlib.Path):
  """configs/sft.py over a small model, on eight simulated devices."""
  config = sft.get_config()
  config.model.path, config.data.path = str(model), str(data)
  config.data.update({"sequence_length": 128, "held_out": 0.2})
  config.training.update({"batch_size": 4, "accumulation": 2, "steps": 6, "epochs": None, "checkpoint_every": 2,
                          "peak_learning_rate": 1e-2, "compute_dtype": "float32", "remat": "none"})
  config.mesh.update({"data": 2, "context": 4})
  return config
