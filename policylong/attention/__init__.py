"""Causal self-attention, one op with several implementations."""

from policylong.attention.api import IMPLEMENTATIONS, attention

__all__ = ["IMPLEMENTATIONS", "attention"]
