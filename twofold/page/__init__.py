"""The page of a run: tiles, plots and sections of evaluation, explanation, data, model and training."""
