"""What the rows of the ledger add up to: dollars by stage and by run, shared bills, rates at which data came."""
