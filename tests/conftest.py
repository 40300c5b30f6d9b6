"""Property tests ask the same of every machine: the same examples at each run, however long one takes.

Hypothesis' own defaults would fail an example above 200 ms, and examples that are made slowly: on a busy machine any
can be. Look for examples that nobody has tried with `pytest --hypothesis-profile=search [--hypothesis-seed=N]`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("same", PATIENT, derandomize=True, database=None)
settings.register_profile("search", PATIENT)
settings.load_profile("same")
