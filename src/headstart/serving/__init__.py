"""The model behind HTTP: the pyfunc model and its request format."""
