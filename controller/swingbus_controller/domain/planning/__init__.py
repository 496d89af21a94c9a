"""Money: points, prices and policy, and the plan they make. Knows no ledger: what fits is told to it in watts."""
