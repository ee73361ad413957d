"""Serving: recommendations from the bundle of a run, as Arrow tables in Python and as JSON over HTTP.

Without HTTP: `recommender.py`. One HTTP request passes `middleware.py`, `app.py`, `service.py`, `user_state.py`,
`two_stage.py` and `responses.py`, in this order.
"""

from twofold.serve.recommender import Recommender, load

__all__ = ["Recommender", "load"]
