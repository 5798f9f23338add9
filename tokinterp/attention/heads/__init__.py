"""What single heads do: copy tokens or concepts, merge the tokens of words, and what is lost without them."""
