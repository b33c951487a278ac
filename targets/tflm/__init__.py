"""TensorFlow Lite Micro: arena, flash, latency and operators of microcontrollers."""
