"""All machines of all accounts: offers, the watcher and its timer, adoption, the guard drill."""
