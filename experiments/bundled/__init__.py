"""Making of the model in the package: text and tokenizer, training, evaluation, checks, model card."""
