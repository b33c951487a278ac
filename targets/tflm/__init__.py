"""TensorFlow Lite Micro: arena, flash, latency and operators on microcontrollers."""
