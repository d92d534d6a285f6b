"""What a run trains for beyond the next token: instructions and classes, with every weight or with adapters."""
