"""Errors that a user can cause.

```
TwofoldError          one message: what, where, the value, what would be right, the next step; exit code 2
├── RecipeError       the recipe names something that does not exist, or values that contradict one another
├── DataError         a log, a table or a file does not match the recipe
├── RunError          a run folder is incomplete, damaged, busy or belongs to another recipe
└── RequestError      a request that a loaded bundle cannot answer: unknown user, k of 0
```

Errors of twofold itself are `assert`: they reach the user as a traceback, because they are bugs.
"""


class TwofoldError(Exception):
    """An error that the user can repair. Its message says how; no traceback is shown."""


class RecipeError(TwofoldError):
    """The recipe names something that does not exist, or values that contradict one another."""


class DataError(TwofoldError):
    """A log, a table or a file does not match the recipe."""


class RunError(TwofoldError):
    """A run folder is incomplete, damaged, busy or belongs to another recipe."""


class RequestError(TwofoldError):
    """A request that a loaded bundle cannot answer."""
