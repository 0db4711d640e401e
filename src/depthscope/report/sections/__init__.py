"""One module per section of the page: the sentences, panels and tables of an experiment, from its tables alone."""
