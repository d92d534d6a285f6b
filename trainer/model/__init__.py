"""The model: GPT, optimizers, generation, and its Hugging Face form."""
