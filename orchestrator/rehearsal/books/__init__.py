"""The practice cloud's own books: what it billed, and an audit of it."""
