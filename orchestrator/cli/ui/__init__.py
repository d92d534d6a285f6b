"""One live page of your runs, served from this computer: what `status`, `logs` and `report` know, as it grows."""
