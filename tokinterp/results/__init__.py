"""Labelled results: conventions, provenance, files, means with intervals, tables, the report."""

from .joining import join_runs
from .labels import with_labels
from .profiles import class_profile, mcnemar, span_labels, token_correlation

__all__ = ["class_profile", "join_runs", "mcnemar", "span_labels", "token_correlation", "with_labels"]
