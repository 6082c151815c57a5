"""Attention by cuDNN's fused kernel, through `jax.nn.dot_product_attention`: NVIDIA GPUs only.

It has a derivative of its own and gives no lse away, so it cannot be part of a ring, and JAX offers its packed
form under no public name: it serves whole, unpacked sequences.
"""

import jax
import jax.numpy as jnp

# JAX's name of the kernel's forward pass, from which its derivative has what it keeps: values and lse.
_FORWARD = "dot_product_attention_fwd_wrapper"


def unsuitable(q: jax.Array, platform: str, *, packed: bool, positions: bool, context: bool) -> str | None:
  """Why it cannot be used here, or None."""
  if platform not in ("gpu", "cuda"):
    return f"it needs an NVIDIA GPU, this is a {platform}"
  capability = jax.local_devices()[0].compute_capability
  if not capability[:1].isdigit() or float(capability) < 8:  # cuDNN's own bound; AMD's are names
    return f"it needs a compute capability of 8.0 or more, this GPU has {capability}"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it computes in bfloat16 or float16, the queries are {q.dtype}"
  if q.shape[-1] % 8 or q.shape[-1] > 128:
    return f"it takes head sizes up to 128 that 8 divides, this is {q.shape[-1]}"
  if packed or positions:
    return f"it cannot keep {'packed documents apart' if packed else 'tokens with positions of their own'}"
  if context:
    return "it cannot be part of a sequence that is spread over devices"
  return None


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Causal attention; shapes as in `api.attention`."""
  return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def is_forward(primitive, *_, **__) -> bool:
  """A remat policy: the kernel's values and lse are kept. They are made within JAX's function, so they bear no name."""
  return primitive.name == _FORWARD
