"""model.h5: assemble, save, load, predict, export."""
