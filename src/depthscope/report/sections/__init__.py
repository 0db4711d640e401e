"""One module per section of the page: sentences, panels and tables of an experiment, generated from its tables alone."""
