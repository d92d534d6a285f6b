"""What a run costs: billing rules, cost by stage, and an invoice to compare with."""
