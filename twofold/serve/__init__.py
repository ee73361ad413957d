"""Serving: recommendations from the bundle of a run, as Arrow tables in Python and as JSON over HTTP.

Without HTTP: `recommender.py`. One HTTP request passes `middleware.py`, `app.py`, `service.py`, `micro_batching.py`,
`user_state.py`, `two_stage.py` and `responses.py`, in this order. What outlives a request is in `event_store.py`, what
workers agree on in `shared_state.py`.
"""

from twofold.serve.recommender import Recommender, load

__all__ = ["Recommender", "load"]
