"""The server of a team (`dialin serve`): JSON API, fleet page and optuna-dashboard on one port, behind one login.

From the outside in: `run` listens; `guard` lets in whom `access` knows, and keeps the rules that hold for all paths;
`app` puts together `api` (below /v1), `pages` (the fleet page and signing in), `metrics` and the dashboard. What is
asked of the database is asked once for all who ask at the same time (`desk`).
"""
