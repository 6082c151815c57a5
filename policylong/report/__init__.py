"""What a person looks at: one self-contained page per run, made from the working directory alone."""

from policylong.report.page import write_report

__all__ = ["write_report"]
