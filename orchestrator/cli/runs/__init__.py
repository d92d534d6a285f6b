"""Commands about runs: plan, run, status, logs, fetch, report, compare."""
