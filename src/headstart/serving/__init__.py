"""The model behind HTTP: the pyfunc model, the server, the request format."""
