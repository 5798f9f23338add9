"""One module per published result or benchmark: ``run(...)`` returns labelled data; defaults are the paper's."""
