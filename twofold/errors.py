"""Every error a user can cause.

```
TwofoldError          one message: what, where, the value, what would be right, what to do next; exit code 2
├── RecipeError       the recipe asks for something that does not exist or cannot be
├── DataError         a log, a table or a file of it is not what the recipe says
├── RunError          a run folder is incomplete, damaged, busy or belongs to another recipe
└── RequestError      a question to a loaded bundle that has no answer: unknown user, k of 0
```

Our own mistakes are `assert`; they reach the user as a traceback, because they are bugs.
"""


class TwofoldError(Exception):
    """A mistake the user can mend. Its text says how; no traceback is shown for it."""


class RecipeError(TwofoldError):
    """The recipe asks for something that does not exist or cannot be."""


class DataError(TwofoldError):
    """A log, a table or a file of it is not what the recipe says."""


class RunError(TwofoldError):
    """A run folder is incomplete, damaged, busy or belongs to another recipe."""


class RequestError(TwofoldError):
    """A question to a loaded bundle that has no answer."""
