"""What a key may use: rates, budgets, concurrency; and what it did use."""

from gateway.limits import tables as tables
