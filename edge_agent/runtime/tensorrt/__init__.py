"""TensorRT and TensorRT-RTX: engines built, kept, refitted and run."""
