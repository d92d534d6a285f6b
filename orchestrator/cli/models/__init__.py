"""Commands about a trained model: evaluate, sample, export, push."""
