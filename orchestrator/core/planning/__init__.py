"""Recipe x machine x offer -> plan: batch, rates, hours, dollars, limits."""
