"""The pipeline: one module per stage, and the only place where packages meet. Read `run.py` first."""
