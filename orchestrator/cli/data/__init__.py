"""`gptctl data`: prepare, inspect, convert, verify and push token files."""
