"""Evaluation: protocols, metrics, baselines, confidence intervals and the report. It takes arrays, never a model."""
