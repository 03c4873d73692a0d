"""One module for each experiment: settings in, labelled data out."""
