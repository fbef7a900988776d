"""One SQL database shared by every worker: Optuna's storage, with tickets, leases and epochs beside it.

The ground floor: it knows SQL and Optuna, and nothing of torch, objectives or worker processes.
"""
