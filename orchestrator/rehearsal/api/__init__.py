"""The practice cloud's HTTP side: routes, answers, orders."""
