"""One module for each figure, named as its experiment: labelled data in, figure out."""
