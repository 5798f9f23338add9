"""One module per figure: ``draw(results) -> Figure``, from what the experiment of the same name returns."""
