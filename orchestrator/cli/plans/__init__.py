"""What a recipe would take, before anything is bought: `plan`, `recipes`, and what its data and its origin are."""
